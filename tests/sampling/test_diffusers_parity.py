"""The same oracle and initial state give the same trajectory as diffusers' schedulers.

Everything is compared in float64 (see double_diffusers.py), to 1e-9 where the issue of rounding would allow 1e-5.
Where diffusers deviates from the mathematics a test says so:

* DPM-Solver multistep of order 3 halves the second divided difference (so does the official code), which makes it
  second-order accurate: ours is ``DPMSolverPP(order=3, as_released=True)``;
* ``sde-dpmsolver++`` of order 3 has besides a wrong sign in that term, so that it doesn't converge to the SDE's law;
* DDIM with ``timestep_spacing="linspace"``, or with a number of steps that doesn't divide the table's, jumps to
  ``t - T // steps``, which isn't the level at which it goes on;
* zero terminal SNR is replaced by ``alphas_cumprod[-1] = 2^-24`` outside of DDIM and DDPM;
* UniPC with bh1 is NaN on a last step to sigma = 0 (inf times 0);
* flow UniPC starts at ``1 - 1e-6`` instead of 1.
"""

import math

import pytest
import torch
from double_diffusers import double, drive

from condiff.process import EDM, Discrete, Gaussian, Rectified
from condiff.process.oracles import mixture
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    Consistency,
    DPMSolver,
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

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STABLE_DIFFUSION = Gaussian(Discrete.stable_diffusion())
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def oracle_on(process):
    means = [[[-1.0, 0.5, 0.2]], [[1.0, -0.2, 0.1]], [[0.3, 1.2, -0.7]]]
    return mixture(process, means, stds=[0.4, 0.5, 0.6])


def state(seed=0, scale=1.0):
    return scale * torch.randn(4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tape(count):
    return [state(seed) for seed in range(100, 100 + count)]


def ours(process, solver, times, x, noise=()):
    return sample(oracle_on(process), solver=solver, grid=times, initial=x, rng=Tape(noise) if noise else 0)


def same(a, b):
    torch.testing.assert_close(a, b, **TOLERANCE)


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


class Says:
    """A denoiser that says the same whatever it is asked."""

    shape, kinds = (1, 3), {}

    def __init__(self, kind, value, process=STABLE_DIFFUSION, aux=None):
        self.kind, self.value, self.process, self.aux = kind, value, process, aux

    def __call__(self, x, t, cond=None):
        from condiff.process import Prediction

        return Prediction(x, self.process.at(t), {self.kind: self.value}, aux=self.aux)


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


# DPM-Solver


def dpm(steps, noise=(), **options):
    """diffusers' DPM-Solver on Stable Diffusion's table: its result and the time of each level."""
    grid = Spaced("linspace", one_more=True)
    process = STABLE_DIFFUSION
    options = {"timestep_spacing": "linspace", "prediction_type": "epsilon", **options}
    first = options.get("final_sigmas_type") == "sigma_min"
    times = Spaced("linspace", one_more=True, last="first" if first else "clean").times(process, steps)
    if options.get("use_karras_sigmas") or options.get("use_exponential_sigmas"):
        grid = Karras() if options.get("use_karras_sigmas") else UniformLogSNR()
        times = torch.cat([grid.times(process, steps)[:-1], times[-1:]])
    with double("dpmsolver_multistep", noise) as module:
        scheduler = module.DPMSolverMultistepScheduler(**STABLE, **options)
        scheduler.set_timesteps(steps)
        kind = options["prediction_type"]
        return drive(scheduler, oracle_on(process), times[:-1], state(), kind), times


@pytest.mark.parametrize("steps", [1, 2, 8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rule", ["midpoint", "adams"])
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_dpm_solver_pp(steps, order, rule, last):
    kind = "heun" if rule == "adams" else "midpoint"
    theirs, times = dpm(steps, solver_order=order, solver_type=kind, final_sigmas_type=last)
    solver = DPMSolverPP(order=order, rule=rule, as_released=True)
    same(ours(STABLE_DIFFUSION, solver, times, state()), theirs)


@pytest.mark.parametrize("sigmas", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_pp_in_sigma(sigmas, order):
    theirs, times = dpm(20, solver_order=order, **{sigmas: True})
    same(ours(STABLE_DIFFUSION, DPMSolverPP(order=order, as_released=True), times, state()), theirs)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("options", [{}, {"lower_order_final": False}, {"euler_at_final": True}])
@pytest.mark.parametrize("steps", [10, 16])
def test_dpm_solver_pp_options(kind, options, steps):
    theirs, times = dpm(steps, solver_order=2, prediction_type=kind, final_sigmas_type="sigma_min", **options)
    same(ours(STABLE_DIFFUSION, DPMSolverPP(order=2, **options), times, state()), theirs)


@pytest.mark.parametrize("rule", ["midpoint", "adams"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_dpm_solver_pp_sde(order, rule, last):
    kind = "heun" if rule == "adams" else "midpoint"
    theirs, times = dpm(
        20, tape(20), algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=kind, final_sigmas_type=last
    )
    same(ours(STABLE_DIFFUSION, DPMSolverPP(order=order, rule=rule, noise=1.0), times, state(), tape(20)), theirs)


def test_third_order_sde_of_diffusers_is_wrong():
    """A constant second difference shows it: the weight of D2 must vanish with h, theirs tends to -1."""

    def theirs(h):
        return (1.0 - math.exp(-2.0 * h) - 2.0 * h) / (2.0 * h) ** 2 - 0.5

    def exact(h):  # int_0^h 2 e^(-2 (h - u)) (u / h)^2 du
        return 1.0 - (1.0 - (1.0 - math.exp(-2.0 * h)) / (2.0 * h)) / h

    assert abs(exact(1e-3)) < 1e-3
    assert abs(theirs(1e-3) + 1.0) < 1e-3
    values, times = dpm(20, tape(20), algorithm_type="sde-dpmsolver++", solver_order=3)
    right = ours(STABLE_DIFFUSION, DPMSolverPP(order=3, noise=1.0), times, state(), tape(20))
    assert (right - values).abs().max() > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rule", ["midpoint", "adams"])
def test_dpm_solver(order, rule):
    kind = "heun" if rule == "adams" else "midpoint"
    theirs, times = dpm(
        20, algorithm_type="dpmsolver", solver_order=order, solver_type=kind, final_sigmas_type="sigma_min"
    )
    same(ours(STABLE_DIFFUSION, DPMSolver(order=order, rule=rule, as_released=True), times, state()), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_dpm_solver_with_exact_integrals(order):
    times = Spaced("linspace", one_more=True, last="first").times(STABLE_DIFFUSION, 20)
    with double("deis_multistep") as module:
        scheduler = module.DEISMultistepScheduler(**STABLE, solver_order=order, timestep_spacing="linspace")
        scheduler.set_timesteps(20)
        scheduler.sigmas[-1] = STABLE_DIFFUSION.at(times[-1]).noise / STABLE_DIFFUSION.at(times[-1]).data
        theirs = drive(scheduler, oracle_on(STABLE_DIFFUSION), times[:-1], state(), "epsilon")
    same(ours(STABLE_DIFFUSION, DPMSolver(order=order, rule="adams"), times, state()), theirs)


@pytest.mark.parametrize("solver", [DPMSolverPP(order=2), DPMSolverPP(order=3, as_released=True), UniPC(order=2)])
def test_zero_terminal_snr_of_diffusers_is_ours_with_almost_none(solver):
    """Their table ends in 2^-24; ours can end in 0, and the result differs by what that does to the first step."""
    exact = Gaussian(Discrete.stable_diffusion(zero_terminal_snr=True))
    name = "unipc_multistep" if isinstance(solver, UniPC) else "dpmsolver_multistep"
    options = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    with double(name) as module:
        maker = module.UniPCMultistepScheduler if isinstance(solver, UniPC) else module.DPMSolverMultistepScheduler
        scheduler = maker(**STABLE, **options, solver_order=solver.order)
        almost = Gaussian(Discrete.from_alphas_cumprod(scheduler.alphas_cumprod))
        times = Spaced("trailing").times(almost, 20)
        scheduler.set_timesteps(20)
        theirs = drive(scheduler, oracle_on(almost), times[:-1], state(), "v_prediction")
    same(ours(almost, solver, times, state()), theirs)
    torch.testing.assert_close(ours(exact, solver, times, state()), theirs, rtol=0.02, atol=0.02)


# UniPC


def unipc(steps, options):
    first = options.get("final_sigmas_type") == "sigma_min"
    times = Spaced("linspace", one_more=True, last="first" if first else "clean").times(STABLE_DIFFUSION, steps)
    if options.get("use_karras_sigmas"):
        times = Karras().times(STABLE_DIFFUSION, steps)
    with double("unipc_multistep") as module:
        scheduler = module.UniPCMultistepScheduler(**STABLE, timestep_spacing="linspace", **options)
        scheduler.set_timesteps(steps)
        return drive(scheduler, oracle_on(STABLE_DIFFUSION), times[:-1], state(), "epsilon"), times


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(steps, order, variant):
    last = "zero" if variant == "bh2" else "sigma_min"
    theirs, times = unipc(steps, {"solver_order": order, "solver_type": variant, "final_sigmas_type": last})
    same(ours(STABLE_DIFFUSION, UniPC(order=order, variant=variant), times, state()), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ({"predict_x0": False, "final_sigmas_type": "sigma_min"}, {"predict": "noise"}),
        ({"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_type": "bh1"},
         {"predict": "noise", "variant": "bh1"}),
        ({"lower_order_final": False, "final_sigmas_type": "sigma_min"}, {"lower_order_final": False}),
        ({"disable_corrector": [0, 3]}, {"skip_corrector": (0, 3)}),
        ({"use_karras_sigmas": True}, {}),
    ],
)  # fmt: skip
def test_unipc_options(order, theirs, options):
    expected, times = unipc(12, {"solver_order": order, **theirs})
    same(ours(STABLE_DIFFUSION, UniPC(order=order, **options), times, state()), expected)


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


@pytest.mark.parametrize("order", [1, 2, 3])
def test_flow_dpm_solver(order):
    times = Shifted(3.0, Uniform(start=0.999)).times(FLOW, 20)
    with double("dpmsolver_multistep") as module:
        scheduler = module.DPMSolverMultistepScheduler(
            solver_order=order, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        )
        scheduler.set_timesteps(20)
        torch.testing.assert_close(scheduler.sigmas, times, rtol=1e-12, atol=1e-12)
        theirs = drive(scheduler, oracle_on(FLOW), times[:-1], state(), "flow_prediction")
    same(ours(FLOW, DPMSolverPP(order=order, as_released=True), times, state()), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_flow_unipc(order):
    points = torch.linspace(1.0, 0.001, 21, dtype=torch.float64)[:-1]
    times = torch.cat([3.0 * points / (1.0 + 2.0 * points), torch.zeros(1, dtype=torch.float64)])
    times[0] -= 1e-6
    with double("unipc_multistep") as module:
        scheduler = module.UniPCMultistepScheduler(
            solver_order=order, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        )
        scheduler.set_timesteps(20)
        torch.testing.assert_close(scheduler.sigmas, times, rtol=1e-12, atol=1e-12)
        theirs = drive(scheduler, oracle_on(FLOW), times[:-1], state(), "flow_prediction")
    same(ours(FLOW, UniPC(order=order), times, state()), theirs)
