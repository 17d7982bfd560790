"""Pipelines with other schedulers of theirs: the same latents with the solver that each one is."""

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import (
    CogVideoXDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)
from test_wrap_controls import pixels
from test_wrap_video import cog_call
from tiny import CLOSE, PROMPTS, controlled, dit, flux, latents, sd3, stable_diffusion, stable_diffusion_xl
from tiny_video import cogvideox, wan

from condiff.errors import BadValue, Incompatible
from condiff.interop import grid_of, process_of, wrap
from condiff.interop.schedulers import precondition_of
from condiff.random import Tape
from condiff.sampling import DDIM, DPMSolver, DPMSolverPP, UniPC, sample

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def both(pipe, solver, steps=7, scale=4.0, length=None, **options):
    """The pipeline's latents and ours."""
    theirs = pipe(
        PROMPTS, num_inference_steps=steps, guidance_scale=scale, latents=latents(), output_type="latent", **options
    ).images
    wrapped = wrap(pipe, length=length)
    cond = wrapped.encode(PROMPTS)
    return theirs, sample(wrapped.guided(scale), cond=cond, solver=solver, grid=wrapped.grid(steps), initial=latents())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl], ids=["SD", "XL"])
def test_eulers_scheduler_is_ddim(make, kind):
    """It keeps states divided by data(t); latents that begin a run are scaled by it, and come out the same."""
    pipe = make()
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, prediction_type=kind, timestep_spacing="leading"
    )
    torch.testing.assert_close(*both(pipe, DDIM()), **CLOSE)


@pytest.mark.parametrize(
    ("scheduler", "options", "solver"),
    [
        (
            DPMSolverMultistepScheduler,
            {"algorithm_type": "dpmsolver++", "solver_order": 3},
            DPMSolverPP(3, as_released=True),
        ),
        (DPMSolverMultistepScheduler, {"solver_type": "heun"}, DPMSolverPP(2, rule="adams")),
        (DEISMultistepScheduler, {}, DPMSolver(2, rule="adams")),
        (UniPCMultistepScheduler, {"solver_order": 3}, UniPC(3)),
        (UniPCMultistepScheduler, {"timestep_spacing": "trailing"}, UniPC(2)),
    ],
    ids=["dpm++ 3", "dpm++ heun", "deis", "unipc 3", "unipc trailing"],
)
def test_multistep_schedulers_of_tables(scheduler, options, solver):
    pipe = stable_diffusion()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    torch.testing.assert_close(*both(pipe, solver), **CLOSE)


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without"])
def test_sd3_with_shifts_by_resolution(t5):
    pipe = sd3(t5=t5, dynamic=True)
    torch.testing.assert_close(*both(pipe, DDIM(), length=12, max_sequence_length=12), **CLOSE)


@pytest.mark.parametrize(
    ("scheduler", "solver"),
    [
        (UniPCMultistepScheduler(**FLOW, flow_shift=3.0), UniPC(2)),
        (DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0), DPMSolverPP(2)),
    ],
    ids=["unipc", "dpm++"],
)
def test_multistep_schedulers_of_flows(scheduler, solver):
    pipe = sd3()
    pipe.scheduler = scheduler
    torch.testing.assert_close(*both(pipe, solver), **CLOSE)


@pytest.mark.parametrize(("shift", "steps"), [(3.0, 9), (1.0, 27)])
def test_whole_times_are_what_the_network_is_told(shift, steps):
    """In 27 steps without a shift noise levels are whole numbers but for their rounding to float32."""
    scheduler = UniPCMultistepScheduler(**FLOW, flow_shift=shift)
    process, _ = process_of(scheduler)
    scheduler.set_timesteps(steps)
    told = [precondition_of(scheduler).time(level) * 1000 for level in process.levels(grid_of(scheduler, steps))[:-1]]
    assert [round(float(t), 6) for t in told] == scheduler.timesteps.tolist()
    assert precondition_of(sd3().scheduler).time(process.at(0.4567)) == pytest.approx(0.4567)


def test_cogvideox_with_noise_in_its_steps():
    """Its DPM scheduler draws twice in a step of second order, and uses the second draw."""
    pipe = cogvideox(scheduler=CogVideoXDPMScheduler)
    theirs = cog_call(pipe, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(2, 3, 4, 4, 2, generator=generator) for _ in range(9)]
    used = [draws[0], *draws[2::2]]
    wrapped = wrap(pipe, size=(32, 16), frames=9, length=12)
    ours = sample(
        wrapped.guided(4.0), cond=wrapped.encode(PROMPTS), solver=DPMSolverPP(2, noise=1.0), grid=wrapped.grid(5),
        initial=latents((2, 3, 4, 4, 2)), rng=Tape(used),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("rule", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_grids_spaced_by_noise(rule):
    pipe = stable_diffusion()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, **{rule: True})
    levels = wrap(pipe).denoiser.process.levels(wrap(pipe).grid(6))
    ratios = torch.tensor([level.noise / level.data for level in levels])
    pipe.scheduler.set_timesteps(6)
    torch.testing.assert_close(ratios, pipe.scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_grids_with_repeated_times_list_them_once():
    pipe = stable_diffusion()
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    assert torch.equal(wrap(pipe).grid(6), wrap(stable_diffusion()).grid(6))


# Offloading: hooks stay in place, and move weights at each call


def offloaded(pipe):
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


CASES = {
    "SD": (stable_diffusion, {}, {}),
    "XL": (stable_diffusion_xl, {}, {}),
    "SD3": (sd3, {}, {}),
    "FLUX": (flux, {"size": (16, 16), "length": 12}, {}),
    "ControlNet": (
        lambda: controlled(StableDiffusionControlNetPipeline, stable_diffusion()),
        {},
        {"control": pixels()},
    ),
    "CogVideoX": (cogvideox, {"size": (32, 16), "frames": 9, "length": 12}, {}),
    "Wan": (wan, {"size": (32, 16), "frames": 9, "length": 12}, {}),
    "DiT": (dit, {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_model_offloading_keeps_its_hooks(case):
    make, options, told = CASES[case]
    entries = [3, 5] if case == "DiT" else PROMPTS
    plain, moved = wrap(make(), **options), wrap(offloaded(make()), **options)
    net = moved.family.net
    assert hasattr(net, "_hf_hook")
    calls, hook = [], net._hf_hook
    before = hook.pre_forward
    hook.pre_forward = lambda *args, **kwargs: calls.append(1) or before(*args, **kwargs)
    results = []
    for wrapped in (plain, moved):
        cond = wrapped.encode(entries, **told)
        z = sample(wrapped.guided(2.0), cond=cond, solver=DDIM(), grid=wrapped.grid(2), seed=0)
        with torch.no_grad():
            results.append((z, wrapped.codec.decode(z)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(calls) == 2 and net._hf_hook is hook


def test_hooks_of_accelerate_on_a_codec():
    pipe = wan()
    theirs = wrap(wan(), size=(32, 16), frames=9, length=12).codec
    pipe.vae, _ = cpu_offload_with_hook(pipe.vae, torch.device("cpu"))
    ours = wrap(pipe, size=(32, 16), frames=9, length=12).codec
    z = latents((2, 3, 16, 4, 2))
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(z), theirs.decode(z))


# Whatever isn't known


def test_pipelines_that_are_told_more_are_refused():
    editing = cogvideox()
    editing.transformer.register_to_config(in_channels=8)
    with pytest.raises(Incompatible, match="takes 8 channels and gives 4"):
        wrap(editing, size=(32, 16))
    pipe = stable_diffusion()
    pipe.adapter = torch.nn.Linear(1, 1)
    with pytest.raises(Incompatible, match="has a Linear"):
        wrap(pipe)
    with pytest.raises(BadValue, match="isn't padded to a length"):
        wrap(stable_diffusion(), length=12)
