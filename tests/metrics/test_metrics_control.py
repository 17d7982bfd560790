"""The bound on a stochastic sampler's error: above the exact divergence of Gaussians with perturbed fields."""

import math

import pytest
import torch

from condiff.conditions import Condition
from condiff.errors import BadValue, Incompatible
from condiff.metrics import FieldLosses, best_noise, field_losses, kl_bound
from condiff.process import Gaussian, Interpolant, Prediction, Rectified, StudentT
from condiff.process.oracles import gaussian, paired

F64 = torch.float64
PROCESS = Interpolant("linear", "brownian")
(M0, V0), (M1, V1) = (1.0, 0.3), (-1.0, 1.2)  # of the data and of the endpoint
EXACT = paired(
    PROCESS, torch.tensor([[M0], [M1]], dtype=F64), torch.diag(torch.tensor([V0, V1], dtype=F64)), blind=True
)


class Perturbed:
    """Exact fields with affine errors."""

    process, shape, kinds = PROCESS, (1,), {"y": "endpoint"}

    def __init__(self, velocity=(0.15, 0.1), score=(-0.1, 0.2)):
        self.velocity, self.score = velocity, score

    def __call__(self, x, t, cond=None):
        said = EXACT(x, t)
        values = {"velocity": said.velocity + self.velocity[0] + self.velocity[1] * x,
                  "score": said.score + self.score[0] + self.score[1] * x}  # fmt: skip
        return Prediction(x, said.level, values)


def sampled_law(model, eps, steps=4000):
    """Mean and variance of the SDE's last state, whose drift is affine: d m = drift(m), d v = 2 slope v + 2 eps."""
    mean, var, dt = M1, V1, 1.0 / steps
    times = 1.0 - (torch.arange(steps, dtype=F64) + 0.5) * dt
    ends = []
    for x in (0.0, 1.0):
        said = model(torch.full((steps, 1), x, dtype=F64), times)
        ends.append((eps * said.score - said.velocity).flatten())
    for at_zero, at_one in zip(*(e.tolist() for e in ends), strict=True):
        slope = at_one - at_zero
        mean, var = mean + dt * (at_zero + slope * mean), var + dt * (2 * slope * var + 2 * eps)
    return mean, var


def divergence(mean, var):
    return 0.5 * (math.log(var / V0) + (V0 + (M0 - mean) ** 2) / var - 1.0)


def data(n=2000):
    draw = torch.Generator().manual_seed(0)
    x, y = (m + v**0.5 * torch.randn(n, 1, dtype=F64, generator=draw) for m, v in ((M0, V0), (M1, V1)))
    return x, {"y": Condition(y, "endpoint")}


def test_the_exact_fields_lead_to_the_data():
    for eps in (0.1, 2.0):
        assert divergence(*sampled_law(EXACT, eps)) < 1e-5


def test_the_bound_lies_above_the_divergence_for_all_noise_levels():
    model = Perturbed()
    x, cond = data()
    excess = field_losses(model, x, cond, reference=EXACT, rng=0)
    ratios = [kl_bound(excess, eps) / divergence(*sampled_law(model, eps)) for eps in (0.1, 0.5, 2.0)]
    assert all(1.0 < ratio < 50.0 for ratio in ratios), ratios


def test_excess_losses_are_those_of_the_law():
    """Half of E (a + c x)^2 over x_t, integrated in t."""
    x, cond = data(20_000)
    found = field_losses(Perturbed(), x, cond, reference=EXACT, rng=0)
    t = torch.linspace(1e-3, 1 - 1e-3, 2001, dtype=F64)
    mean, var = (1 - t) * M0 + t * M1, (1 - t) ** 2 * V0 + t**2 * V1 + t * (1 - t)
    for value, (a, c) in ((found.velocity, (0.15, 0.1)), (found.score, (-0.1, 0.2))):
        exact = torch.trapezoid(0.5 * ((a + c * mean) ** 2 + c**2 * var), t)
        assert value == pytest.approx(float(exact), rel=0.03)


def test_without_a_reference_differences_are_the_excess():
    x, cond = data(20_000)
    model = Perturbed((0.5, 0.2), (-0.5, 0.3))
    with_reference = field_losses(model, x, cond, reference=EXACT, rng=0)
    a, b = (field_losses(m, x, cond, rng=0) for m in (model, EXACT))
    assert a.velocity - b.velocity == pytest.approx(with_reference.velocity, rel=0.1)
    assert a.score - b.score == pytest.approx(with_reference.score, rel=0.1)


def test_the_best_noise_minimises_the_bound():
    excess = FieldLosses(velocity=0.04, score=0.01)
    best = best_noise(excess)
    assert best == pytest.approx(2.0)
    assert kl_bound(excess, best) < min(kl_bound(excess, 0.9 * best), kl_bound(excess, 1.1 * best))
    assert kl_bound(excess, best) == pytest.approx(2.0 * math.sqrt(0.04 * 0.01))


def test_bad_inputs():
    x, cond = data(4)
    with pytest.raises(BadValue, match="the ODE has none"):
        kl_bound(FieldLosses(1.0, 1.0), 0.0)
    with pytest.raises(BadValue, match=">= 0"):
        kl_bound(FieldLosses(-1.0, 1.0), 1.0)
    with pytest.raises(BadValue, match="no best level"):
        best_noise(FieldLosses(1.0, 0.0))
    with pytest.raises(BadValue, match="0 < low < high < 1"):
        field_losses(EXACT, x, cond, low=0.0)
    with pytest.raises(Incompatible, match="Gaussian noise"):
        field_losses(type("M", (), {"process": Gaussian(Rectified(), StudentT(4.0))})(), x)
    model = gaussian(Gaussian(Rectified()), torch.zeros(1), std=1.0)
    assert field_losses(model, x, reference=model, times=3) == FieldLosses(0.0, 0.0)
