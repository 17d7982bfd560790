"""Predictor-corrector: the law that Langevin steps settle on, and their cost."""

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.process import Cosine, Gaussian
from condiff.process.oracles import gaussian
from condiff.random import Tape
from condiff.sampling import (
    DDIM,
    AdamsBashforth,
    DPMSolver,
    DPMSolverPP,
    PredictorCorrector,
    Renoise,
    UniPC,
    sample,
    trajectory,
)
from condiff.sampling.corrector import langevin

PROCESS = Gaussian(Cosine())


@pytest.mark.parametrize("snr", [0.1, 0.3])
def test_langevin_settles_on_the_law_of_the_level(snr):
    """On N(0, v): e tends to 2 snr^2 v in many dimensions, and x <- (1 - e/v) x + sqrt(2e) z has variance
    v / (1 - snr^2) when it no longer changes.
    """
    model, level = gaussian(PROCESS, torch.zeros(2000), std=0.8), PROCESS.at(0.4)
    v = level.data**2 * 0.64 + level.noise**2
    g = torch.Generator().manual_seed(0)
    x = 2.0 * torch.randn(20, 2000, generator=g, dtype=torch.float64)
    for _ in range(int(3.0 / snr**2)):
        z = torch.randn(x.shape, generator=g, dtype=torch.float64)
        x = langevin(x, model(x, level).score, z, snr)
    torch.testing.assert_close(float(x.var()), v / (1.0 - snr**2), rtol=0.015, atol=0)


def test_corrections_pull_a_bad_predictor_back():
    """Three DDIM steps leave the wrong variance; corrections at the last noisy level bring its law back."""
    model = gaussian(PROCESS, torch.zeros(4000), std=2.0)
    grid = [0.98, 0.5, 0.25]
    level = PROCESS.at(0.25)
    v = level.data**2 * 4.0 + level.noise**2

    def error(solver):
        x = sample(model, solver=solver, grid=grid, num=4, seed=0, dtype=torch.float64)
        return abs(float(x.var()) / v - 1.0)

    plain, corrected = error(DDIM()), error(PredictorCorrector(DDIM(), steps=60, snr=0.15))
    assert plain > 0.2 and corrected < 0.05


def test_norms_are_per_sample_and_evaluations_are_counted():
    model, pc = gaussian(PROCESS, torch.zeros(5), std=0.5), PredictorCorrector(DDIM(eta=1.0), steps=2)
    x = torch.randn(3, 5, dtype=torch.float64) * torch.tensor([[0.1], [1.0], [30.0]])
    steps = list(trajectory(model, x, solver=pc, steps=4, rng=[1, 2, 3]))
    assert [s.nfe for s in steps] == [3, 6, 9, 10]  # the noise-free end isn't corrected
    alone = list(trajectory(model, x[1:2], solver=pc, steps=4, rng=[2]))
    torch.testing.assert_close(steps[-1].x_s[1:2], alone[-1].x_s, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"snr": 0.0}, {"snr": 1.0}])
def test_bad_options(bad):
    with pytest.raises(BadValue, match="steps >= 1 and 0 < snr < 1"):
        PredictorCorrector(DDIM(), **bad)


def test_rows_and_frames_with_their_own_times():
    """What waits and what is clean comes back bit for bit, and disturbs nothing else."""
    one, both = gaussian(PROCESS, torch.zeros(3), std=0.5), gaussian(PROCESS, torch.zeros(2, 3), std=0.5)
    solver = PredictorCorrector(DDIM(), steps=2)
    g = torch.Generator().manual_seed(0)
    x, *draws = (torch.randn(2, 2, 3, generator=g, dtype=torch.float64) for _ in range(12))
    column, late = torch.tensor([1.0, 0.7, 0.4, 0.0]), torch.tensor([1.0, 1.0, 0.6, 0.6])
    rows = torch.stack([column, late], 1).double()
    out = sample(one, solver=solver, grid=rows, initial=x[:, 0], rng=Tape([z[:, 0] for z in draws]))
    for i in range(2):
        grid = rows[:, i : i + 1].contiguous()
        alone = sample(
            one, solver=solver, grid=grid, initial=x[i : i + 1, 0], rng=Tape([z[i : i + 1, 0] for z in draws])
        )
        torch.testing.assert_close(out[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    frames = rows[:, None].expand(-1, 2, -1).contiguous()
    steps = list(trajectory(both, x, solver=solver, grid=frames, rng=Tape(draws)))
    assert torch.equal(steps[0].x_s[:, 1], x[:, 1]) and torch.equal(steps[2].x_s[:, 1], steps[2].x_t[:, 1])
    assert all(step.x_s.isfinite().all() for step in steps)
    start = x.clone().requires_grad_()
    sample(both, solver=solver, grid=frames[:2], initial=start, rng=0, grad=True).sum().backward()
    assert start.grad.isfinite().all()
    paused = sample(one, solver=solver, grid=[0.5, 0.5], initial=x[:, 0], rng=0)
    assert torch.equal(paused, x[:, 0])


@pytest.mark.parametrize(
    "predictor",
    [DPMSolverPP(2), UniPC(), AdamsBashforth(2), Renoise(DPMSolver(3))],
    ids=["DPM-Solver++", "UniPC", "Adams-Bashforth", "inside Renoise"],
)
def test_predictors_that_go_on_from_earlier_evaluations_are_refused(predictor):
    """Corrections move the state by a length that doesn't fall with the steps, and a rule that takes differences of
    evaluations over steps would count it in: of N(0, 0.36) they made a variance of 0.43."""
    with pytest.raises(Incompatible, match="a predictor of one step"):
        PredictorCorrector(predictor)
    PredictorCorrector(DPMSolverPP(order=1))
