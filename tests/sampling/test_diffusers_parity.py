"""The same oracle and initial state give the same trajectory as diffusers' schedulers.

Everything is compared in float64 (see double_diffusers.py), to 1e-9.
Where diffusers deviates from the mathematics a test says so:

* DDIM with ``timestep_spacing="linspace"``, or with a number of steps that doesn't divide the table's, jumps to
  ``t - T // steps``, which isn't the level at which it goes on;
* Euler with churn evaluates the network at the level before the churn.

The multistep rules are in test_diffusers_multistep.py.
"""

import diffusers
import pytest
import torch
from double_diffusers import STABLE, STABLE_DIFFUSION, Says, double, drive, oracle_on, ours, same, state, tape

from condiff.process import EDM, Discrete, Gaussian, Rectified
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    Consistency,
    DPMSolverPP,
    Euler,
    Heun,
    Karras,
    RungeKutta,
    Shifted,
    Spaced,
    Uniform,
    UniformLogSNR,
    UniPC,
    resolution_shift,
    sample,
)

# Tables and spacings


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        ({}, Discrete.ddpm()),
        (STABLE, Discrete.stable_diffusion()),
        ({"beta_schedule": "squaredcos_cap_v2"}, Discrete.cosine()),
        ({**STABLE, "rescale_betas_zero_snr": True}, Discrete.stable_diffusion(zero_terminal_snr=True)),
    ],
)
def test_tables(rule, schedule):
    with double("ddim") as module:
        table = module.DDIMScheduler(**rule).alphas_cumprod
    torch.testing.assert_close(schedule.table, table, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 37, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings(spacing, steps):
    offset = 1 if spacing == "leading" else 0
    with double("ddim") as module:
        scheduler = module.DDIMScheduler(**STABLE, timestep_spacing=spacing, steps_offset=offset)
        scheduler.set_timesteps(steps)
    grid = Spaced(spacing, offset=offset)
    assert grid.indices(STABLE_DIFFUSION, steps).tolist() == scheduler.timesteps.tolist()
    with double("dpmsolver_multistep") as module:
        scheduler = module.DPMSolverMultistepScheduler(**STABLE, timestep_spacing=spacing, steps_offset=offset)
        scheduler.set_timesteps(steps)
    grid = Spaced(spacing, offset=offset, one_more=spacing != "trailing")
    assert grid.indices(STABLE_DIFFUSION, steps).tolist() == scheduler.timesteps.tolist()


# DDPM, DDIM


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clean", [True, False])
def test_ddim(kind, spacing, eta, clean):
    offset = 1 if spacing == "leading" else 0
    times = Spaced(spacing, offset=offset, last="clean" if clean else "first").times(STABLE_DIFFUSION, 20)
    with double("ddim", tape(20)) as module:
        scheduler = module.DDIMScheduler(
            **STABLE, clip_sample=False, set_alpha_to_one=clean, steps_offset=offset,
            timestep_spacing=spacing, prediction_type=kind,
        )  # fmt: skip
        scheduler.set_timesteps(20)
        theirs = drive(scheduler, oracle_on(STABLE_DIFFUSION), times[:-1], state(), kind, eta=eta)
    same(ours(STABLE_DIFFUSION, DDIM(eta=eta), times, state(), tape(20)), theirs)


def test_ddim_zero_terminal_snr():
    """Stable Diffusion 2.1 as Lin 2023 fixed it: v-prediction, pure noise at the last index, trailing."""
    process = Gaussian(Discrete.stable_diffusion(zero_terminal_snr=True))
    times = Spaced("trailing").times(process, 25)
    with double("ddim") as module:
        scheduler = module.DDIMScheduler(
            **STABLE, clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing",
            prediction_type="v_prediction",
        )  # fmt: skip
        scheduler.set_timesteps(25)
        theirs = drive(scheduler, oracle_on(process), times[:-1], state(), "v_prediction")
    same(ours(process, DDIM(), times, state()), theirs)


def test_ddim_linspace_of_diffusers_jumps_elsewhere():
    """Index 999 goes to 899, but the next evaluation is at 888."""
    times = Spaced("linspace").times(STABLE_DIFFUSION, 10)
    with double("ddim") as module:
        scheduler = module.DDIMScheduler(**STABLE, clip_sample=False, timestep_spacing="linspace")
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[:2].tolist() == [999, 888]
        step = scheduler.step(state(1), 999, state(), return_dict=False)[0]
    level, wrong, right = (STABLE_DIFFUSION.at((i + 1) / 1000) for i in (999, 899, 888))
    x0 = (state() - level.noise * state(1)) / level.data
    torch.testing.assert_close(step, wrong.data * x0 + wrong.noise * state(1))
    ahead = sample(Says("noise", state(1)), solver=DDIM(), grid=times[:2], initial=state())
    torch.testing.assert_close(ahead, right.data * x0 + right.noise * state(1))


@pytest.mark.parametrize(
    ("theirs", "variance", "steps"),
    [("fixed_small", "posterior", 20), ("fixed_large", "beta", 20), ("fixed_small", "posterior", 1000)],
)
def test_ddpm(theirs, variance, steps):
    """Also all 1000 steps, as Ho et al. sample."""
    process = Gaussian(Discrete.ddpm())
    times = Spaced("leading").times(process, steps)
    with double("ddpm", tape(steps)) as module:
        scheduler = module.DDPMScheduler(clip_sample=False, variance_type=theirs)
        scheduler.set_timesteps(steps)
        expected = drive(scheduler, oracle_on(process), times[:-1], state(), "epsilon")
    same(ours(process, DDPM(variance=variance), times, state(), tape(steps)), expected)


def test_ddpm_learned_range():
    process = Gaussian(Discrete.ddpm())
    v, noise = state(5).clamp(-1.0, 1.0), state(6)
    times = Spaced("leading").times(process, 10)
    with double("ddpm", tape(10)) as module:
        scheduler = module.DDPMScheduler(clip_sample=False, variance_type="learned_range")
        scheduler.set_timesteps(10)
        expected = state()
        for t in scheduler.timesteps:
            expected = scheduler.step(torch.cat([noise, v], 1), t, expected, return_dict=False)[0]
    denoiser = Says("noise", noise, process, {"variance": v})
    found = sample(denoiser, solver=DDPM("learned_range"), grid=times, initial=state(), rng=Tape(tape(10)))
    same(found, expected)


# Euler, Heun in sigma


def sigma_scheduler(name, maker, steps, noise=(), kind="epsilon", **options):
    last = Spaced("linspace").times(STABLE_DIFFUSION, steps)
    times = Karras().times(STABLE_DIFFUSION, steps) if options.get("use_karras_sigmas") else last
    with double(name, noise) as module:
        scheduler = getattr(module, maker)(
            **STABLE, timestep_spacing="linspace", prediction_type=kind, **options
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        calls = times[:-1]
        if maker == "HeunDiscreteScheduler":
            calls = torch.cat([times[:1], times[1:-1].repeat_interleave(2)])
        return drive(scheduler, oracle_on(STABLE_DIFFUSION), calls, state(), kind, per_alpha=True), times


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_in_sigma_is_ddim(kind):
    theirs, times = sigma_scheduler("euler_discrete", "EulerDiscreteScheduler", 10, kind=kind)
    same(ours(STABLE_DIFFUSION, DDIM(), times, state()), theirs)
    same(ours(STABLE_DIFFUSION, Heun(corrector=False), times, state()), theirs)


@pytest.mark.parametrize("sigmas", [{}, {"use_karras_sigmas": True}])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_heun(kind, sigmas):
    theirs, times = sigma_scheduler("heun_discrete", "HeunDiscreteScheduler", 10, kind=kind, **sigmas)
    same(ours(STABLE_DIFFUSION, Heun(), times, state()), theirs)


def test_euler_ancestral_is_ddim_with_eta_one():
    theirs, times = sigma_scheduler(
        "euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", 10, tape(10)
    )  # fmt: skip
    same(ours(STABLE_DIFFUSION, DDIM(eta=1.0), times, state(), tape(10)), theirs)


@pytest.mark.parametrize("churn", [3.0, 40.0])
def test_churn(churn):
    """diffusers evaluates the network at the level before the churn; k-diffusion and EDM, and we, after it.

    So the network's answer is given, and the rest of the step compared.
    """
    noise = state(7)
    times = Spaced("linspace").times(STABLE_DIFFUSION, 10)
    with double("euler_discrete", tape(10)) as module:
        scheduler = module.EulerDiscreteScheduler(**STABLE, timestep_spacing="linspace")
        scheduler.set_timesteps(10)
        limits = {"s_churn": churn, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.01}
        expected = state() / STABLE_DIFFUSION.at(times[0]).data
        for t in scheduler.timesteps:
            scheduler.scale_model_input(expected, t)
            expected = scheduler.step(noise, t, expected, return_dict=False, **limits)[0]
    solver = Heun(churn=churn, churn_min=0.1, churn_max=10.0, churn_noise=1.01, corrector=False)
    same(sample(Says("noise", noise), solver=solver, grid=times, initial=state(), rng=Tape(tape(10))), expected)


# EDM


@pytest.mark.parametrize(
    ("name", "maker", "solver", "options"),
    [
        ("edm_euler", "EDMEulerScheduler", DDIM(), {}),
        ("edm_euler", "EDMEulerScheduler", DDIM(), {"sigma_schedule": "exponential"}),
        ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", DPMSolverPP(order=2), {}),
        ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", DPMSolverPP(order=2, rule="adams"),
         {"solver_type": "heun"}),
        ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", DPMSolverPP(order=3, as_released=True),
         {"solver_order": 3}),
        ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", DPMSolverPP(order=2, noise=1.0),
         {"algorithm_type": "sde-dpmsolver++"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [8, 18])
def test_edm(name, maker, solver, options, steps):
    process = Gaussian(EDM(sigma_max=80.0))
    grid = UniformLogSNR if options.get("sigma_schedule") == "exponential" else Karras
    times = grid(sigma_min=0.002, sigma_max=80.0).times(process, steps)
    oracle, x = oracle_on(process), state(scale=80.0)
    with double(name, tape(steps)) as module:
        scheduler = getattr(module, maker)(**options)
        scheduler.set_timesteps(steps)
        expected = x
        for t, time, sigma in zip(scheduler.timesteps, times[:-1], scheduler.sigmas[:-1], strict=True):
            torch.testing.assert_close(process.at(time).noise, sigma)
            seen = scheduler.scale_model_input(expected, t)
            c_in = 1.0 / (sigma**2 + 0.25) ** 0.5
            torch.testing.assert_close(seen, c_in * expected)
            x0 = oracle(expected, float(time)).x0
            raw = (x0 - expected * 0.25 * c_in**2) / (sigma * 0.5 * c_in)  # what the EDM network outputs
            expected = scheduler.step(raw, t, expected, return_dict=False)[0]
    same(ours(process, solver, times, x, tape(steps)), expected)


# Flow matching


FLOW = Gaussian(Rectified())


def test_flow_euler_as_stable_diffusion_3_samples():
    """shift = 3; the scheduler's lowest sigma is shifted twice, and is the end of its even spacing."""
    with double("flow_match_euler_discrete") as module:
        scheduler = module.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(28)
        end = 3.0 * 0.001 / (1.0 + 2.0 * 0.001)
        times = Shifted(3.0, Uniform(end=end, clean=True)).times(FLOW, 28)
        torch.testing.assert_close(scheduler.sigmas, times, rtol=1e-12, atol=1e-12)
        theirs = drive(scheduler, oracle_on(FLOW), times[:-1], state(), "flow_prediction")
    same(ours(FLOW, Euler(), times, state()), theirs)
    same(ours(FLOW, DDIM(), times, state()), theirs)
    same(ours(Gaussian(Rectified(shift=3.0)), DDIM(), Uniform(end=end, clean=True).times(FLOW, 28), state()), theirs)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_flow_euler_as_flux_samples(tokens):
    with double("flow_match_euler_discrete") as module:
        scheduler = module.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / 20, 20).numpy(), mu=mu)
        times = Shifted(resolution_shift(tokens)).times(FLOW, 20)
        torch.testing.assert_close(scheduler.sigmas, times, rtol=1e-12, atol=1e-12)
        theirs = drive(scheduler, oracle_on(FLOW), times[:-1], state(), "flow_prediction")
    same(ours(FLOW, Euler(), times, state()), theirs)


def test_stochastic_flow_sampling_is_consistency_sampling():
    times = Uniform(end=0.001, clean=True).times(FLOW, 8)
    with double("flow_match_euler_discrete", tape(8)) as module:
        scheduler = module.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
        scheduler.set_timesteps(8)
        theirs = drive(scheduler, oracle_on(FLOW), times[:-1], state(), "flow_prediction")
    same(ours(FLOW, Consistency(), times, state(), tape(8)), theirs)


def test_flow_heun_is_heun_in_time():
    with double("flow_match_heun_discrete") as module:
        scheduler = module.FlowMatchHeunDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(10)
        times = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
        calls = torch.cat([times[:1], times[1:-1].repeat_interleave(2)])
        theirs = drive(scheduler, oracle_on(FLOW), calls, state(), "flow_prediction")
    same(ours(FLOW, RungeKutta("heun"), times, state()), theirs)


# As it is shipped


@pytest.mark.parametrize(
    ("maker", "solver", "grid"),
    [
        ("DDIMScheduler", DDIM(), Spaced("leading", offset=1, last="first")),
        ("DPMSolverMultistepScheduler", DPMSolverPP(2), Spaced("linspace", one_more=True)),
        ("UniPCMultistepScheduler", UniPC(2), Spaced("linspace", one_more=True)),
    ],
    ids=str,
)
def test_untouched_schedulers_in_single_precision(maker, solver, grid):
    """The double-precision schedulers above are the shipped ones: in float32 they agree to its rounding."""
    options = {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False} if maker == "DDIMScheduler" else {}
    scheduler = getattr(diffusers, maker)(**STABLE, **options)
    scheduler.set_timesteps(20)
    times = grid.times(STABLE_DIFFUSION, 20)
    theirs = drive(scheduler, oracle_on(STABLE_DIFFUSION), times[:-1], state().float(), "epsilon")
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(ours(STABLE_DIFFUSION, solver, times, state().float()), theirs, rtol=1e-5, atol=1e-5)
