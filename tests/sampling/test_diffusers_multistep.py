"""DPM-Solver, DEIS and UniPC: the same trajectories as diffusers' schedulers (see test_diffusers_parity.py).

Where diffusers deviates from the mathematics:

* order 3 of DPM-Solver multistep halves the second divided difference (so does the official code), which makes it
  second-order accurate: ours is ``as_released=True``;
* order 3 of ``sde-dpmsolver++`` has besides a wrong sign in that term, so that it doesn't converge to the SDE's law;
* zero terminal SNR is replaced by ``alphas_cumprod[-1] = 2^-24``;
* UniPC with bh1 is NaN on a last step to sigma = 0 (inf times 0), and flow UniPC starts at ``1 - 1e-6`` instead of 1.
"""

import math

import pytest
import torch
from double_diffusers import STABLE, STABLE_DIFFUSION, double, drive, oracle_on, ours, same, state, tape

from condiff.process import Discrete, Gaussian, Rectified
from condiff.sampling import DPMSolver, DPMSolverPP, Karras, Shifted, Spaced, Uniform, UniformLogSNR, UniPC

FLOW = Gaussian(Rectified())


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


# Flow matching


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
