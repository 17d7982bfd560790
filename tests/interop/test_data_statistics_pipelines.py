"""Teleportation, analysis and kinetic-optimal paths on pipelines of the real classes."""

import math

import pytest
import torch
from tiny import ddpm, dit, sd3, stable_diffusion

from condiff.data import principal_law
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Free
from condiff.interop import wrap
from condiff.process import (
    Gaussian,
    PrincipalLaw,
    Rectified,
    Retimed,
    Separation,
    kinetic_optimal,
    model_separation,
    straight_sigmas,
)
from condiff.sampling import DDIM, Euler, KineticEnergy, Record, analyse, propagate, sample, teleport

MIDDLE = Separation(roots=(0.1, 1.0, 10.0), mmse=(0.98, 0.4, 1e-3))


def pictures(count, *shape):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


@pytest.mark.parametrize("make", [ddpm, dit], ids=["DDPM pipeline", "DiT pipeline"])
def test_a_pipeline_starts_late(make, tmp_path):
    """On its own grid; nothing skipped is plain sampling bit for bit, and every skipped step saves a call."""
    wrapped = wrap(make())
    model, grid = wrapped.denoiser, wrapped.grid(8)
    cond = {} if make is ddpm else {"cond": wrapped.encode([1, 2, 3])}
    law = principal_law(pictures(30, *model.shape), rank=5)
    law.save(tmp_path / "stats.safetensors")
    law = PrincipalLaw.load(tmp_path / "stats.safetensors")
    options = {"solver": DDIM(), "grid": grid, "seed": 0, **cond, **({} if cond else {"num": 3})}
    assert torch.equal(teleport(model, law, skip=0, **options), sample(model, **options))
    record = Record(lambda step: step.nfe)
    late = teleport(model, law, skip=3, force=True, hooks=[record], **options)
    assert record.values[-1] == len(grid) - 1 - 3 and torch.isfinite(late).all()


def test_a_network_that_the_statistics_do_not_describe_is_noticed():
    """Random weights: the score isn't the Gaussian's."""
    model = wrap(ddpm()).denoiser
    with pytest.raises(BadValue, match=r"explains|deviations"):
        teleport(model, principal_law(pictures(30, *model.shape)), solver=DDIM(), steps=8, num=2, seed=0)
    with pytest.raises(BadValue, match="don't fit"):
        teleport(model, principal_law(pictures(30, 3, 4, 4)), solver=DDIM(), steps=8, num=2, seed=0)


def test_guided_latents_take_statistics_of_generated_ones():
    sd = wrap(stable_diffusion())
    guided, cond = Free(sd.denoiser, scale=3.0), sd.encode(["a red fox", "two cats"])
    made = sample(guided, cond=sd.encode(["a red fox"] * 12), solver=DDIM(), grid=sd.grid(4), seed=1)
    law = principal_law(made)
    options = {"cond": cond, "solver": DDIM(), "grid": sd.grid(6), "seed": 0}
    with pytest.raises(Incompatible, match="force=True"):
        teleport(guided, law, skip=2, **options)
    z = teleport(guided, law, skip=2, force=True, **options)
    assert sd.codec.decode(z).shape == (2, 3, 16, 16)


@torch.no_grad()
def test_trajectories_of_a_pipeline_are_looked_at(tmp_path):
    flow = wrap(sd3())
    law = principal_law(pictures(40, *flow.denoiser.shape), rank=8)
    cond = flow.encode(["a fox"] * 6)
    x = torch.randn(6, *flow.denoiser.shape, generator=torch.Generator().manual_seed(0))
    found = analyse(flow.denoiser, law, x, solver=Euler(), grid=flow.grid(6), cond=cond, components=2)
    assert found.decided.shape == (6, 2) and bool(torch.isfinite(found.plane).all())
    assert math.isnan(float(found.explained[0])) and bool((found.explained[1:] < 1.0).all())  # no data at t = 1
    assert found.figure(tmp_path / "flow.png").is_file()
    moved = propagate(flow.denoiser, x, 0, 0.05, law=law, solver=Euler(), grid=flow.grid(4), cond=cond)
    assert moved.growth.shape == (6,) and moved.predicted > 0.0


@torch.no_grad()
def test_sd3_follows_a_kinetic_optimal_path_through_its_own_scheduler():
    """``sigmas=`` remapped for the pipeline's scheduler, and ``Retimed`` here: the same latents."""
    pipe = sd3()
    flow, schedule = wrap(pipe), kinetic_optimal(MIDDLE)
    times = torch.linspace(1.0, 0.0, 7, dtype=torch.float64)
    cond = flow.encode(["a fox", "two cats"])
    x = torch.randn(2, *flow.denoiser.shape, generator=torch.Generator().manual_seed(0))
    energy = KineticEnergy()
    path = Retimed(flow.denoiser, Gaussian(schedule))
    ours = sample(path, cond=cond, solver=DDIM(), grid=times, initial=x, hooks=[energy])
    sigmas = straight_sigmas(schedule, times)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    straight = Gaussian(Rectified())
    z = x
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        level = flow.denoiser.process.time(straight.at(sigma).log_snr * torch.ones((), dtype=torch.float64))
        z = scheduler.step(flow.denoiser(z, float(level), cond).velocity * _clock(flow, float(level)), t, z).prev_sample
    torch.testing.assert_close(z, ours, rtol=1e-3, atol=1e-3)  # the scheduler keeps float32 noise levels
    assert bool((energy.per_dim > 0.0).all())


def _clock(flow, t):
    """dt / d sigma of the pipeline's own shifted clock."""
    return 1.0 / flow.denoiser.process.at(t).d_noise


@torch.no_grad()
def test_a_pipeline_whose_errors_are_above_those_of_a_gaussian_has_no_angle():
    """Random weights; a trained one has its own."""
    wrapped = wrap(dit())
    x = pictures(6, *wrapped.denoiser.shape)
    cond = {name: entry.value for name, entry in wrapped.encode([0, 1, 2, 3, 4, 5]).items()}
    found = model_separation(wrapped.denoiser, x, cond, draws=6, roots=(0.05, 0.2))
    assert found.mmse == pytest.approx([1.0 / (1.0 + s * s) for s in (0.05, 0.2)], rel=1e-9)
    assert found.angle == pytest.approx(0.0, abs=1e-6) and found.power > 0.0
