"""Processes, solvers and denoisers that the tests of solvers share."""

import pytest
import torch

from condiff.process import EDM, Cosine, Gaussian, Prediction, Rectified, VPLinear
from condiff.process.oracles import mixture
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    AdamsBashforth,
    Consistency,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Heun,
    Overshoot,
    Renoise,
    RungeKutta,
    UniPC,
    sample,
)

VP, COSINE, FLOW, VE = (Gaussian(s) for s in (VPLinear(), Cosine(), Rectified(), EDM(sigma_max=10.0, rho=3.0)))
DETERMINISTIC = [
    DDIM(), Euler(), Heun(), AdamsBashforth(3), DPMSolverPP(2), DPMSolverPP(3, lower_order_final=False), DPMSolver(3),
    UniPC(2), UniPC(3, lower_order_final=False), UniPC(2, predict="noise"), RungeKutta("heun"), RungeKutta("rk4"),
]  # fmt: skip
STOCHASTIC = [
    DDIM(eta=1.0), DDPM(), DDPM("beta"), SDE(), SDE(0.5, "sigma"), DPMSolverPP(2, noise=1.0), Consistency(),
    Heun(churn=2.0), Renoise(DDIM()),
]  # fmt: skip
ALL = DETERMINISTIC + STOCHASTIC
SINGLE_LINE = [  # exact where all data are one point
    DDIM(), DDIM(eta=0.7), DDPM(), Overshoot(), Consistency(), DPMSolverPP(1), DPMSolverPP(3),
    DPMSolverPP(3, noise=1.0), UniPC(3), UniPC(2, "bh1"), Heun(), DPMSolver(3), UniPC(2, predict="noise"),
]  # fmt: skip
each = lambda name, solvers: pytest.mark.parametrize(name, solvers, ids=str)


def oracle_on(process):
    return mixture(process, [[-1.0, 0.5, 0.2], [1.0, -0.2, 0.1]], stds=[0.4, 0.6])


def state(rows=3, seed=0, shape=(3,)):
    return torch.randn(rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Says:
    """Another denoiser's answer as one quantity, as a network would give it."""

    def __init__(self, denoiser, kind, aux=None):
        self.denoiser, self.kind, self.aux = denoiser, kind, aux
        self.process, self.shape = denoiser.process, denoiser.shape

    def __call__(self, x, t, cond=None):
        found = self.denoiser(x, t, cond)
        return Prediction(x, found.level, {self.kind: found.to(self.kind)}, found.source, self.aux)


class Point:
    """All data at one point."""

    def __init__(self, process, shape=(3,)):
        self.process, self.shape = process, shape

    def __call__(self, x, t, cond=None):
        level = self.process.at(t)
        noise = (x - 0.7 * as_weight(level.data, x)) / as_weight(level.noise, x)
        return Prediction(x, level, {"x0": torch.full_like(x, 0.7), "noise": noise})


def as_weight(w, x):
    return w.reshape(w.shape + (1,) * (x.ndim - w.ndim)) if isinstance(w, torch.Tensor) else w


def go(solver, grid, x, denoiser=None, process=VP, **options):
    denoiser = denoiser or oracle_on(process)
    return sample(denoiser, solver=solver, grid=grid, initial=x, **{"rng": 0, **options})


def equal(a, b, **tolerance):
    torch.testing.assert_close(a, b, **(tolerance or {"rtol": 1e-11, "atol": 1e-11}))


def has_final(solver):
    return hasattr(solver, "lower_order_final")
