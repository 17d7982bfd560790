"""DPM-Solver-v3 on real pipelines: statistics of the guided latents, files, the authors' folder layout."""

import numpy as np
import pytest
import torch
from tiny import PROMPTS, ddpm, dit, sd3, stable_diffusion

from condiff.derivatives import jvp
from condiff.errors import Incompatible
from condiff.guidance import Free
from condiff.interop import as_scheduler, wrap
from condiff.process import Discrete, Gaussian
from condiff.sampling import DPMSolverPP, DPMSolverV3, ModelStatistics, measure_statistics, sample


@pytest.fixture(scope="module")
def measured():
    sd = wrap(stable_diffusion())
    guided, cond = Free(sd.denoiser, scale=7.5), sd.encode(PROMPTS * 16)
    return sd, guided, measure_statistics(guided, cond=cond, nodes=24, batch=32, rng=0)


def rmse(a, b):
    return float((a - b).square().mean().sqrt())


def test_guided_latents_of_stable_diffusion(measured, tmp_path):
    sd, guided, tables = measured
    assert tables.shape == (4, 8, 8) and tables.guidance == {"type": "Free", "scale": 7.5} and tables.samples == 32
    assert tables.start == pytest.approx(1.0) and tables.end == pytest.approx(1e-3)
    tables.save(tmp_path / "sd_7.5.safetensors")
    again = ModelStatistics.load(tmp_path / "sd_7.5.safetensors")
    cond = sd.encode(PROMPTS)

    def draw(solver, steps):
        return sample(guided, cond=cond, solver=solver, grid=again.grid("time"), steps=steps, seed=0)

    z = draw(DPMSolverV3(again, corrector_until=0.5), 8)
    assert torch.equal(z, draw(DPMSolverV3(tables, corrector_until=0.5), 8))
    assert sd.codec.decode(z).shape == (2, 3, 16, 16)
    exact = draw(DPMSolverPP(), 200)
    errors = [rmse(draw(DPMSolverV3(tables), n), exact) for n in (6, 12, 24)]
    assert errors[0] > 1.5 * errors[1] > 3.0 * errors[2]
    with pytest.raises(Incompatible, match="once for each scale"):
        sample(Free(sd.denoiser, scale=5.0), cond=cond, solver=DPMSolverV3(tables), grid=tables.grid(), steps=5, seed=0)
    with pytest.raises(Incompatible, match="samples of shape"):
        big = wrap(stable_diffusion(), size=(32, 32))
        sample(
            Free(big.denoiser, scale=7.5), cond=cond, solver=DPMSolverV3(tables), grid=tables.grid(), steps=5, seed=0
        )


@torch.no_grad()
def test_forward_mode_through_its_attention_in_state_and_time(measured):
    sd, guided, _ = measured
    guided.denoiser.double()
    try:
        cond = sd.encode(PROMPTS).map(lambda v: v.double() if v.dtype.is_floating_point else v)
        x, dx = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64).unbind(0)
        found = jvp(guided, x, 0.5, cond, kind="noise", dx=dx)
        ahead, behind = (guided(x + h * dx, 0.5, cond).noise for h in (1e-5, -1e-5))
        scale = float(found.derivative.abs().max())
        torch.testing.assert_close(found.derivative, (ahead - behind) / 2e-5, rtol=0, atol=1e-5 * scale)
        along = jvp(guided, x, 0.5, cond, kind="noise", dt=1.0)
        later, before = (guided(x, 0.5 + h, cond).noise for h in (2.0**-14, -(2.0**-14)))
        scale = float(along.derivative.abs().max())
        torch.testing.assert_close(along.derivative, (later - before) * 2.0**13, rtol=0, atol=0.02 * scale)
    finally:
        guided.denoiser.float()


def test_as_the_scheduler_of_the_pipeline(measured, tmp_path):
    """What was measured goes into the pipeline, and comes back with it from a folder."""
    sd, guided, tables = measured
    solver, grid = DPMSolverV3(tables, corrector_until=0.5), tables.grid("time")
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    want = sample(guided, cond=sd.encode(PROMPTS), solver=solver, grid=grid, steps=6, initial=start)
    pipe, before = sd.pipeline, sd.pipeline.scheduler
    how = {"num_inference_steps": 6, "guidance_scale": 7.5, "latents": start, "output_type": "latent"}
    try:
        pipe.scheduler = as_scheduler(solver, pipe, grid)
        torch.testing.assert_close(pipe(PROMPTS, **how).images, want, rtol=1e-4, atol=1e-4)
        pipe.scheduler.save_pretrained(tmp_path)
        pipe.scheduler = type(pipe.scheduler).from_pretrained(tmp_path)
        torch.testing.assert_close(pipe(PROMPTS, **how).images, want, rtol=1e-4, atol=1e-4)
    finally:
        pipe.scheduler = before


def test_tables_in_the_authors_layout(measured, tmp_path):
    sd, guided, tables = measured
    np.savez(tmp_path / "l.npz", l=tables.l.numpy())
    np.savez(tmp_path / "sb.npz", s=tables.s.numpy(), b=tables.b.numpy())
    process = Gaussian(Discrete.stable_diffusion())  # by its rule, where the pipeline has a table of numbers
    read = ModelStatistics.from_npz(tmp_path, process, start=1.0, end=1e-3, guidance=7.5, samples=8)
    a, b = (
        sample(guided, cond=sd.encode(PROMPTS), solver=DPMSolverV3(t), grid=tables.grid("time"), steps=6, seed=0)
        for t in (tables, read)
    )
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [dit, sd3, ddpm], ids=["dit", "sd3", "ddpm"])
def test_other_pipelines(make):
    model = wrap(make())
    cond = {dit: [3, 5] * 8, sd3: PROMPTS * 8}.get(make)
    cond = None if cond is None else model.encode(cond)
    guided = model.denoiser if cond is None else Free(model.denoiser, scale=3.0)
    count = None if cond is not None else 16
    tables = measure_statistics(guided, cond=cond, samples=count, nodes=8, rng=0)
    x = sample(guided, cond=cond, num=count, solver=DPMSolverV3(tables), grid=tables.grid(), steps=4, seed=0)
    assert x.shape == (16, *model.denoiser.shape) and x.isfinite().all() and tables.l.isfinite().all()
