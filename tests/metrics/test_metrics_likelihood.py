"""The variational bound against Gaussians for which every term is known."""

import math

import pytest
import scipy.stats
import torch

from condiff.errors import BadValue, Incompatible
from condiff.metrics import bits_per_dim, elbo, nats_per_sample
from condiff.metrics.likelihood import _log_probability
from condiff.process import Cosine, Gaussian, Prediction, Rectified, VPLinear


class Normal:
    """E[x0 | x_t] for x0 ~ N(mean, var), which is all that the bound asks for."""

    kinds, shape = {}, None

    def __init__(self, process, mean=0.3, var=0.25):
        self.process, self.mean, self.var = process, mean, var

    def __call__(self, x, t, cond=None):
        level = self.process.at(t)
        gain = level.data * self.var / (level.data**2 * self.var + level.noise**2)
        return Prediction(x, level, {"x0": self.mean + gain * (x - level.data * self.mean)})

    def error(self, level):
        """Var[x0 | x_t]."""
        return self.var * level.noise**2 / (level.data**2 * self.var + level.noise**2)

    def draw(self, n, d, seed=0):
        z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.mean + self.var**0.5 * z

    def log_prob(self, x):
        return torch.distributions.Normal(self.mean, self.var**0.5).log_prob(x).sum(1)


@pytest.mark.parametrize("schedule", [Cosine(), VPLinear(), Rectified()])
def test_every_term_has_its_expectation(schedule):
    model, d = Normal(Gaussian(schedule)), 2
    times = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    x = model.draw(40000, d)
    terms = elbo(model, x, times, rng=1)
    levels = model.process.levels(times)
    snr = [(level.data / level.noise) ** 2 for level in levels]
    power = model.mean**2 + model.var
    assert terms.steps.shape == (4, 40000) and terms.kind == "lower bound"

    def check(found, expected):
        assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / len(found) ** 0.5 + 1e-12

    check(terms.prior, 0.5 * d * snr[-1] * power)
    for i in range(4):
        check(terms.steps[i], 0.5 * (snr[i] - snr[i + 1]) * d * model.error(levels[i + 1]))
    width = levels[0].noise / levels[0].data
    gap = -0.5 * model.error(levels[0]) / width**2 - math.log(width) - 0.5 * math.log(2 * math.pi)
    check(terms.reconstruction, d * gap)
    torch.testing.assert_close(terms.total, terms.reconstruction - terms.steps.sum(0) - terms.prior)


def test_the_bound_lies_below_the_likelihood_and_tightens():
    model = Normal(Gaussian(Cosine()))
    x = model.draw(4000, 3)
    truth, gaps = float(model.log_prob(x).mean()), []
    for steps in (4, 16, 64, 256):
        times = torch.logspace(-3, 0, steps + 1, dtype=torch.float64)
        gaps.append(truth - float(elbo(model, x, times, rng=1).total.mean()))
    # The gap of a Riemann sum: it falls as 1 / steps.
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 27 * gaps[3] > 0 and gaps[3] < 0.6
    wrong = elbo(Normal(model.process, mean=0.0), x, torch.logspace(-3, 0, 257), rng=1)
    assert float(wrong.total.mean()) < truth - gaps[-1] - 0.1


def test_a_step_is_the_divergence_of_two_gaussians():
    """0.5 (SNR_s - SNR_t) |x - x0|^2 equals KL between the two posteriors, written out."""
    process = Gaussian(Cosine())
    s, t = process.levels(torch.tensor([0.3, 0.6]))
    ratio, kernel = process.kernel(s, t)
    slope = s.data * kernel**2 / t.noise**2  # of the posterior mean in x0
    kl = 0.5 * (slope / process.posterior_std(t, s)) ** 2
    assert kl == pytest.approx(0.5 * ((s.data / s.noise) ** 2 - (t.data / t.noise) ** 2), rel=1e-10)
    assert ratio > 0


def test_probabilities_of_cells_sum_to_one():
    bins, std = 16, 0.1
    grid = torch.linspace(-1, 1, bins, dtype=torch.float64)[:, None]
    for mean in (-1.3, 0.21, 0.999, 4.0):
        log_p = _log_probability(grid, torch.full_like(grid, mean), std, bins)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        assert torch.isfinite(log_p).all()
    edges = (grid[3] - 1 / 15).item(), (grid[3] + 1 / 15).item()
    expected = scipy.stats.norm.cdf(edges[1], 0.2, std) - scipy.stats.norm.cdf(edges[0], 0.2, std)
    found = _log_probability(grid[3:4], torch.full((1, 1), 0.2, dtype=torch.float64), std, bins)
    assert float(found.exp()) == pytest.approx(expected, rel=1e-9)


def test_bound_on_probabilities():
    model = Normal(Gaussian(Cosine()), mean=0.1, var=0.04)
    x = model.draw(1000, 4)
    levels = ((x + 1) * 127.5).round() / 127.5 - 1
    assert levels.abs().max() < 1
    times = torch.logspace(-3, 0, 401, dtype=torch.float64)
    total = elbo(model, levels, times, rng=1, bins=256).total
    half = 1 / 255
    law = torch.distributions.Normal(0.1, 0.2)
    truth = torch.log(law.cdf(levels + half) - law.cdf(levels - half)).sum(1)
    bits, exact = float(bits_per_dim(total, 4).mean()), float(bits_per_dim(truth, 4).mean())
    # In nats: 0.09 for 400 steps, 0.05 for the last Gaussian's tails outside the cell, and 0.19 =
    # log(width / (std sqrt(2 pi e))) because this denoiser doesn't know that values lie on levels.
    assert exact < bits and (bits - exact) * math.log(2) == pytest.approx(0.33, abs=0.05)
    with pytest.raises(BadValue, match="256 levels"):
        elbo(model, x, times, bins=256)
    with pytest.raises(BadValue, match="at least 2"):
        elbo(model, levels, times, bins=1)


def test_units():
    nats = torch.tensor([-10.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(nats, 5), -nats / 5 / math.log(2))
    # A uniform density on [-1, 1] costs 8 bits a pixel in 256 cells.
    assert float(bits_per_dim(torch.tensor(-3 * math.log(2.0)), 3, 2 / 256)) == pytest.approx(8.0)
    torch.testing.assert_close(nats_per_sample(bits_per_dim(nats, 7, 0.01), 7, 0.01), nats)
    for bad in (dict(dims=0), dict(dims=3, bin_width=0.0)):
        with pytest.raises(BadValue):
            bits_per_dim(nats, **bad)


def test_faults():
    model, x = Normal(Gaussian(Cosine())), torch.zeros(2, 3)
    for times in ([0.5], [0.5, 0.2], [[0.1, 0.2]]):
        with pytest.raises(BadValue, match="increasing"):
            elbo(model, x, torch.tensor(times))
    with pytest.raises(BadValue, match="start above 0"):
        elbo(model, x, torch.tensor([0.0, 1.0]))

    class Endpoint(Gaussian):
        has_source = True

    with pytest.raises(Incompatible, match="without an endpoint"):
        elbo(Normal(Endpoint(Cosine())), x, torch.tensor([0.1, 1.0]))
