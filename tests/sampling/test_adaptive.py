"""The adaptive integrator: exact on a Gaussian, in both directions, on every path."""

import math

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.process import EDM, Cosine, Gaussian, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import Adaptive, invert, sample, trajectory

SCHEDULES = [Cosine(), Rectified(), VPLinear(), EDM()]


def law(schedule, std=0.5):
    return gaussian(Gaussian(schedule), [0.3, -1.0], std=std)


def exact(model, x, t, s, std=0.5):
    """The flow of a Gaussian keeps the number of standard deviations from the mean."""
    t, s = model.process.at(t), model.process.at(s)
    mean = torch.tensor([0.3, -1.0], dtype=torch.float64)
    ratio = math.hypot(s.data * std, s.noise) / math.hypot(t.data * std, t.noise)
    return s.data * mean + ratio * (x - t.data * mean)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("grid", [[1.0, 0.0], [1.0, 0.6, 0.0], [0.7, 0.2]])
def test_flow_of_a_gaussian_in_both_directions(schedule, grid):
    model, solver = law(schedule), Adaptive(rtol=1e-9, atol=1e-9)
    x = torch.randn(4, 2, dtype=torch.float64) * model.process.at(grid[0]).noise
    out = sample(model, solver=solver, grid=grid, initial=x)
    torch.testing.assert_close(out, exact(model, x, grid[0], grid[-1]), rtol=1e-6, atol=1e-6)
    back = invert(model, out, solver=solver, grid=grid)
    torch.testing.assert_close(back.latent, x, rtol=1e-6, atol=1e-6)
    assert len(back.path) == len(grid)


def test_tolerance_buys_evaluations_and_accuracy():
    model = mixture(Gaussian(Rectified()), [[-1.0, 0.0], [1.5, 0.5]], stds=0.2)
    x = torch.randn(6, 2, dtype=torch.float64)
    reference = sample(model, solver=Adaptive(rtol=1e-11, atol=1e-11), grid=[1.0, 0.0], initial=x)
    errors, nfes = [], []
    for tol in (1e-3, 1e-5, 1e-7):
        (step,) = trajectory(model, x, solver=Adaptive(rtol=tol, atol=tol), grid=[1.0, 0.0])
        errors.append(float((step.x_s - reference).abs().max()))
        nfes.append(step.nfe)
    assert errors[0] > 10.0 * errors[1] > 100.0 * errors[2]
    assert errors[2] < 1e-6
    assert nfes == sorted(nfes) and nfes[0] < 60


def test_evaluations_are_counted_and_float32_works():
    class Counted:
        shape, kinds, calls = (2,), None, 0
        inner = law(Cosine())
        process = inner.process

        def __call__(self, x, t, cond=None):
            self.calls += 1
            return self.inner(x, t, cond)

    model = Counted()
    (step,) = trajectory(model, torch.randn(3, 2), solver=Adaptive(), grid=[1.0, 0.0])
    assert step.nfe == model.calls > 6
    assert step.x_s.dtype == torch.float32
    torch.testing.assert_close(step.x_s, exact(law(Cosine()), step.x_t, 1.0, 0.0).float(), rtol=1e-3, atol=1e-3)


def test_rows_agree_with_separate_runs_within_the_tolerance():
    model = mixture(Gaussian(Cosine()), [[-1.0, 0.0], [1.5, 0.5]], stds=0.2)
    x = torch.randn(5, 2, dtype=torch.float64)
    solver = Adaptive(rtol=1e-7, atol=1e-7)
    together = sample(model, solver=solver, grid=[1.0, 0.0], initial=x)
    for i in (0, 3):
        one = sample(model, solver=solver, grid=[1.0, 0.0], initial=x[i : i + 1])
        torch.testing.assert_close(one, together[i : i + 1], rtol=1e-6, atol=1e-6)


def test_bad_options():
    with pytest.raises(BadValue, match="positive"):
        Adaptive(rtol=0.0)
    with pytest.raises(BadValue, match="Did you mean 'dopri8' or 'dopri5'"):
        Adaptive(method="dopri")
    with pytest.raises(Incompatible, match="time per row"):
        sample(law(Cosine()), solver=Adaptive(), grid=torch.tensor([[1.0, 1.0], [0.5, 0.5]]), num=2, seed=0)
