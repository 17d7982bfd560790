"""Measured orders of convergence, float64; run with ``-s`` to see the table.

ODE rules: error of the final state on a Gaussian-mixture oracle against Runge-Kutta of order 4 on a fine grid. The
grids shrink towards their start, where a multistep rule has no history and is of order 1: otherwise the start's error
would be all that is seen of a third-order rule.

SDE rules: with a Gaussian oracle a sampler is an affine map of its initial state and its draws. Its mean and covariance
are worked out exactly by sending unit vectors through it, and compared with the law at the last level; the slope is the
weak order for first and second moments, without Monte Carlo error.
"""

import dataclasses
import math

import pytest
import torch

from condiff.process import Cosine, Gaussian, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    AdamsBashforth,
    Consistency,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Grid,
    Heun,
    RungeKutta,
    UniPC,
    sample,
)

PROCESS = Gaussian(VPLinear())
MIXTURE = mixture(PROCESS, [[-1.0, 0.5], [1.0, -0.2], [0.3, 1.2]], stds=[0.4, 0.5, 0.6])
STATE = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FULL = {"lower_order_final": False}
NO_CORRECTOR = {**FULL, "skip_corrector": tuple(range(240))}


@dataclasses.dataclass(frozen=True)
class Graded(Grid):
    """From ``start`` to ``end`` in log-SNR (or t), at ``u^power`` with u even."""

    start: float
    end: float
    in_time: bool = False
    power: float = 2.0

    def times(self, process, steps):
        u = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64) ** self.power
        points = self.start + u * (self.end - self.start)
        return points if self.in_time else process.time(points)


IN_SNR = Graded(-5.0, 6.0)
IN_TIME = Graded(0.9, 0.1, in_time=True)
UP = Graded(6.0, -5.0)


def run(solver, grid, steps, oracle=MIXTURE):
    return sample(oracle, solver=solver, grid=grid.times(oracle.process, steps), initial=STATE)


@pytest.fixture(scope="module")
def exact():
    fine = {grid: run(RungeKutta("rk4"), Graded(grid.start, grid.end, grid.in_time, 1.0), 600)
            for grid in (IN_SNR, IN_TIME, UP)}  # fmt: skip
    return fine


def slope(errors):
    """Of the last halving."""
    return math.log2(errors[-2] / errors[-1])


def short(part):
    """The options that aren't the defaults."""
    fields = [(f.name, getattr(part, f.name), f.default) for f in dataclasses.fields(part)]
    return f"{type(part).__name__}({', '.join(f'{n}={v}' for n, v, default in fields if v != default)})"[:68]


def show(name, errors, order):
    print(f"\n{name:<70} {'  '.join(f'{e:.1e}' for e in errors)}   slope {slope(errors):.2f} of {order}", end="")


ODE = [
    (DDIM(), IN_SNR, 1),
    (Heun(corrector=False), IN_SNR, 1),
    (Heun(), IN_SNR, 2),
    (DPMSolverPP(1, **FULL), IN_SNR, 1),
    (DPMSolverPP(2, **FULL), IN_SNR, 2),
    (DPMSolverPP(2, rule="adams", **FULL), IN_SNR, 2),
    (DPMSolverPP(3, **FULL), IN_SNR, 3),
    (DPMSolverPP(3, as_released=True, **FULL), IN_SNR, 2),
    (DPMSolver(1, **FULL), IN_SNR, 1),
    (DPMSolver(2, **FULL), IN_SNR, 2),
    (DPMSolver(3, **FULL), IN_SNR, 3),
    (UniPC(1, **FULL), IN_SNR, 2),
    (UniPC(2, **FULL), IN_SNR, 3),
    (UniPC(2, variant="bh1", **FULL), IN_SNR, 3),
    (UniPC(3, **FULL), IN_SNR, 4),
    (UniPC(1, predict="noise", **FULL), IN_SNR, 2),
    (UniPC(2, predict="noise", **FULL), IN_SNR, 3),
    (UniPC(3, predict="noise", **FULL), IN_SNR, 4),
    (UniPC(1, **NO_CORRECTOR), IN_SNR, 1),
    (UniPC(2, variant="bh1", **NO_CORRECTOR), IN_SNR, 2),
    (UniPC(3, **NO_CORRECTOR), IN_SNR, 3),
    (Euler(), IN_TIME, 1),
    (AdamsBashforth(1), IN_TIME, 1),
    (AdamsBashforth(2), IN_TIME, 2),
    (AdamsBashforth(3), IN_TIME, 3),
    (AdamsBashforth(4), IN_TIME, 4),
    (RungeKutta("midpoint"), IN_TIME, 2),
    (RungeKutta("heun"), IN_TIME, 2),
    (RungeKutta("ralston"), IN_TIME, 2),
    (RungeKutta("rk3"), IN_TIME, 3),
    (RungeKutta("rk4"), IN_TIME, 4),
    (SDE(noise=0.0), IN_TIME, 1),
    # The same rules from data to noise.
    (DDIM(), UP, 1),
    (DPMSolverPP(2, **FULL), UP, 2),
    (DPMSolverPP(3, **FULL), UP, 3),
    (DPMSolver(3, **FULL), UP, 3),
    (UniPC(2, **FULL), UP, 3),
    (Heun(), UP, 2),
]


@pytest.mark.parametrize(
    ("solver", "grid", "order"), ODE, ids=lambda v: short(v) if dataclasses.is_dataclass(v) else str(v)
)
def test_order_of_ode_solvers(solver, grid, order, exact):
    errors = [float((run(solver, grid, n) - exact[grid]).abs().max()) for n in (60, 120, 240)]
    show(("up: " if grid is UP else "") + short(solver), errors, order)
    assert abs(slope(errors) - order) < 0.2


@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), Rectified(shift=3.0)], ids=str)
@pytest.mark.parametrize(
    ("solver", "order"), [(DPMSolverPP(2, **FULL), 2), (UniPC(2, **FULL), 3), (Heun(), 2)], ids=str
)
def test_order_on_other_schedules(schedule, solver, order):
    oracle = mixture(Gaussian(schedule), [[-1.0, 0.5], [1.0, -0.2]], stds=[0.4, 0.5])
    fine = run(RungeKutta("rk4"), Graded(-5.0, 6.0, power=1.0), 400, oracle)
    errors = [float((run(solver, IN_SNR, n, oracle) - fine).abs().max()) for n in (60, 120)]
    show(f"{schedule}: {short(solver)}", errors, order)
    assert abs(slope(errors) - order) < 0.2


# Moments of stochastic rules

NORMAL = gaussian(PROCESS, [1.0, -0.5], cov=[[0.5, 0.2], [0.2, 0.3]])


def law(solver, times):
    """Mean and covariance of the sampler's last state, exactly: columns of an affine map."""
    steps, dims = len(times) - 1, 2
    mean, cov = NORMAL.moments(float(times[0]))
    root = torch.linalg.cholesky(cov[0])
    x = mean.repeat(1 + dims + steps * dims, 1)
    x[1 : 1 + dims] += root.T
    draws = torch.zeros(steps, *x.shape, dtype=torch.float64)
    for k in range(steps):
        draws[k, 1 + dims * (k + 1) : 1 + dims * (k + 2)] = torch.eye(dims, dtype=torch.float64)
    y = sample(NORMAL, solver=solver, grid=times, initial=x, rng=Tape(draws))
    columns = y[1:] - y[:1]
    return y[0], columns.T @ columns


def moment_error(solver, grid, steps):
    times = grid.times(PROCESS, steps)
    mean, cov = law(solver, times)
    true_mean, true_cov = NORMAL.moments(float(times[-1]))
    return max(float((mean - true_mean[0]).abs().max()), float((cov - true_cov[0]).abs().max()))


SNR, TIME = Graded(-5.0, 5.0, power=1.0), Graded(0.9, 0.1, in_time=True, power=1.0)
WEAK = [
    (DDIM(eta=0.5), SNR, 1),
    (DDIM(eta=1.0), SNR, 1),
    (DDPM("posterior"), SNR, 1),
    (DDPM("beta"), SNR, 1),
    (SDE(noise=1.0), TIME, 1),
    (SDE(noise=0.5), TIME, 1),
    (SDE(noise=2.0), TIME, 1),
    (SDE(noise=1.0, scale="sigma"), TIME, 1),
    (SDE(noise=1.0, scale="constant"), TIME, 1),
    (DPMSolverPP(1, noise=1.0, **FULL), SNR, 1),
    (DPMSolverPP(2, noise=0.5, **FULL), SNR, 2),
    (DPMSolverPP(2, noise=1.0, **FULL), SNR, 2),
    (DPMSolverPP(2, noise=1.0, rule="adams", **FULL), SNR, 2),
    (DPMSolverPP(3, noise=1.0, **FULL), SNR, 2),  # fresh noise limits it to 2
    (Heun(churn=5.0), SNR, 2),
]


@pytest.mark.parametrize(
    ("solver", "grid", "order"), WEAK, ids=lambda v: short(v) if dataclasses.is_dataclass(v) else str(v)
)
def test_weak_order_of_sde_solvers(solver, grid, order):
    errors = [moment_error(solver, grid, n) for n in (20, 40, 80, 160)]
    show(short(solver), errors, order)
    assert abs(slope(errors) - order) < 0.15


def test_consistency_sampling_of_a_plain_denoiser_does_not_converge():
    errors = [moment_error(Consistency(), SNR, n) for n in (40, 80, 160)]
    assert errors[-1] > 0.2 and abs(slope(errors)) < 0.1
