"""Inversion: the way back meets the way there at the solver's order."""

import math

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.process import Cosine, Gaussian, Prediction, Rectified
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import DDIM, DPMSolverPP, Euler, Heun, Uniform, invert, sample


def oracle(schedule=None):
    return mixture(Gaussian(schedule or Cosine()), [[-1.0, 0.3], [1.2, 0.0]], stds=[0.4, 0.6], labels=[0, 1])


def round_trip(model, solver, steps, x, **cond):
    found = invert(model, x, solver=solver, steps=steps, **cond)
    again = sample(model, initial=found.latent, grid=found.times.flip(0), solver=solver, **cond)
    return float((again - x).abs().max()), found


@pytest.mark.parametrize(("solver", "schedule"), [(DDIM(), Cosine()), (DDIM(), Rectified()), (Euler(), Rectified())])
def test_round_trip_is_of_first_order(solver, schedule):
    model = oracle(schedule)
    x = model.sample(8, rng=0, dtype=torch.float64)
    errors = [round_trip(model, solver, n, x)[0] for n in (50, 100, 200, 400)]
    slope = math.log2(errors[-2] / errors[-1])
    assert 0.9 < slope < 1.2, (errors, slope)


def test_the_whole_path_with_its_times():
    model = oracle()
    x = model.sample(3, rng=1, dtype=torch.float64)
    error, found = round_trip(model, DDIM(), 10, x)
    assert len(found.path) == len(found.times) == 11
    assert torch.equal(found.path[0], x) and found.latent is found.path[-1]
    assert found.times[0] == 0.0 and found.times[-1] == 1.0
    assert found.nfe == 9  # at t = 0 the data are known
    # The first step: E[noise | x0] = 0.
    torch.testing.assert_close(found.path[1], oracle().process.at(0.1).data * x, rtol=1e-14, atol=1e-14)
    middle = sample(model, initial=found.path[5], grid=found.times[:6].flip(0), solver=DDIM())
    assert (middle - x).abs().max() < error


def test_the_latent_of_data_is_normal():
    """The inverse flow carries the data's law to the prior."""
    model = oracle()
    found = invert(model, model.sample(4000, rng=2, dtype=torch.float64), solver=DDIM(), steps=100)
    assert found.latent.mean(0).abs().max() < 0.05
    torch.testing.assert_close(torch.cov(found.latent.T), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.08)


def test_inversion_under_a_condition():
    model = oracle()
    label = {"label": torch.tensor([0, 1, 0])}
    x = model.sample(3, rng=3, cond=label, dtype=torch.float64)
    assert round_trip(model, DDIM(), 300, x, cond=label)[0] < 0.05


def test_bad_inputs():
    model, x = oracle(), torch.zeros(1, 2)
    with pytest.raises(Incompatible, match="draws noise"):
        invert(model, x, solver=DDIM(eta=1.0), steps=5)
    with pytest.raises(BadValue, match="times must decrease"):
        invert(model, x, solver=DDIM(), grid=[0.0, 0.5, 1.0])
    with pytest.raises(BadValue, match="steps must be at least 1"):
        invert(model, x, solver=DDIM(), steps=0)
    found = invert(model, x, solver=DDIM(), grid=Uniform(start=0.8), steps=4)
    assert found.times[-1] == 0.8


@pytest.mark.parametrize("kind", ["x0", "noise", "velocity"])
def test_rows_that_start_at_levels_of_their_own(kind):
    """Some rows are clean, others aren't: each is inverted as if alone."""
    process = Gaussian(Rectified())
    inner = gaussian(process, torch.zeros(3), std=0.5)

    class Says:
        shape = (3,)

        def __init__(self):
            self.process = process

        def __call__(self, x, t, cond=None):
            said = inner(x, t)
            return Prediction(x, said.level, {kind: said.to(kind)})

    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends, steps = (0.0, 0.2, 0.5), 8
    columns = [torch.linspace(0.95, end, steps + 1, dtype=torch.float64) for end in ends]
    for solver in (DDIM(), Euler(), Heun(), DPMSolverPP(2)):
        together = invert(Says(), x, solver=solver, grid=torch.stack(columns, 1)).latent
        for i, column in enumerate(columns):
            alone = invert(Says(), x[i : i + 1], solver=solver, grid=column).latent
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-11)


def test_no_graph_is_kept_unless_it_is_asked_for():
    """The path of a network with weights would hold every evaluation in memory."""
    model, weight = oracle(), torch.ones((), dtype=torch.float64, requires_grad=True)

    class Weighted:
        process, shape = model.process, model.shape

        def __call__(self, x, t, cond=None):
            said = model(x, t, cond)
            return Prediction(x, said.level, {"x0": weight * said.x0})

    x = model.sample(2, rng=0, dtype=torch.float64)
    assert not invert(Weighted(), x, solver=DDIM(), steps=3).latent.requires_grad
    assert invert(Weighted(), x, solver=DDIM(), steps=3, grad=True).latent.requires_grad
