"""Log-likelihoods against the mixture's own."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from condiff.denoiser import Denoiser
from condiff.errors import BadValue, Incompatible
from condiff.guidance import Free
from condiff.process import EDM, Cosine, Gaussian, Interpolant, Moments, Prior, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import Adaptive, Euler, Uniform, log_likelihood, sample

MEANS = [[-1.0, 0.3, 0.0], [1.0, 0.0, 0.5], [0.5, 2.0, -1.0]]


def oracle(schedule):
    return mixture(Gaussian(schedule), MEANS, stds=[0.3, 0.5, 0.4], weights=[1, 2, 3], labels=[0, 0, 1])


@dataclass(frozen=True, eq=False)
class Marginal(Prior):
    """The exact law at the start, for paths that don't end in pure noise."""

    model: object
    cond: dict | None = None

    def sample(self, *args, **kwargs):
        raise NotImplementedError

    def log_prob(self, x, level, source=None):
        return self.model.log_prob(x, level, self.cond)


@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), VPLinear(), EDM()], ids=str)
@pytest.mark.parametrize("solver", [None, Adaptive(rtol=1e-7, atol=1e-7)], ids=["rk4", "dopri5"])
def test_exact_on_a_mixture(schedule, solver):
    model = oracle(schedule)
    x = model.sample(6, rng=0, dtype=torch.float64)
    found = log_likelihood(model, x, solver=solver, prior=Marginal(model))
    torch.testing.assert_close(found.log_prob, model.log_prob(x, 0.0), rtol=0, atol=1e-4)
    assert found.kind == "exact" and found.std_error is None
    label = {"label": torch.tensor([0, 1, 0, 1, 0, 1])}
    x = model.sample(6, rng=0, cond=label, dtype=torch.float64)
    given = log_likelihood(model, x, label, solver=solver, prior=Marginal(model, label))
    torch.testing.assert_close(given.log_prob, model.log_prob(x, 0.0, label), rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=str)
def test_pure_noise_is_the_default_prior(schedule):
    model = oracle(schedule)
    x = model.sample(6, rng=0, dtype=torch.float64)
    torch.testing.assert_close(log_likelihood(model, x).log_prob, model.log_prob(x, 0.0), rtol=0, atol=1e-4)
    single = log_likelihood(model, x.float(), steps=50)
    torch.testing.assert_close(single.log_prob, model.log_prob(x.float(), 0.0), rtol=0, atol=1e-3)


def test_moments_of_the_data_are_the_right_prior_where_data_remain():
    model = gaussian(Gaussian(EDM(sigma_max=5.0)), [1.0, -2.0], std=0.5)
    x = model.sample(4, rng=0, dtype=torch.float64)
    with pytest.raises(BadValue, match="give prior="):
        log_likelihood(model, x)
    prior = Moments(mean=torch.tensor([1.0, -2.0]), var=0.25)
    torch.testing.assert_close(
        log_likelihood(model, x, prior=prior).log_prob, model.log_prob(x, 0.0), rtol=0, atol=1e-5
    )


def test_runge_kutta_is_of_fourth_order():
    """From a level with noise, where the field is smooth."""
    model = oracle(Rectified())
    level = model.process.at(0.2)
    x = level.data * model.sample(2, rng=0, dtype=torch.float64) + level.noise * 0.5
    exact = model.log_prob(x, 0.2)

    def error(steps):
        return float((log_likelihood(model, x, grid=Uniform(end=0.2), steps=steps).log_prob - exact).abs().max())

    errors = [error(n) for n in (80, 160)]
    assert 3.7 < math.log2(errors[0] / errors[1]) < 4.3, errors


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_hutchinson_is_unbiased_and_knows_its_error(probe):
    model = oracle(Cosine())
    x = model.sample(5, rng=0, dtype=torch.float64)
    found = log_likelihood(model, x, method="hutchinson", probes=200, probe=probe, rng=1, steps=10)
    exact = log_likelihood(model, x, steps=10).log_prob
    assert found.kind == "estimate"
    assert ((found.log_prob - exact).abs() < 4.0 * found.std_error).all()
    assert (found.std_error < 0.2).all() and (found.std_error > 0.0).all()


def test_all_unit_vectors_as_probes_are_the_exact_divergence():
    """With the D scaled unit vectors the mean of e.J e is the trace itself."""
    model = oracle(Cosine())
    x = model.sample(4, rng=0, dtype=torch.float64)
    basis = math.sqrt(3.0) * torch.eye(3, dtype=torch.float64)[:, None].expand(3, 4, 3)
    given = log_likelihood(model, x, method="hutchinson", probes=basis, steps=20)
    torch.testing.assert_close(given.log_prob, log_likelihood(model, x, steps=20).log_prob, rtol=1e-10, atol=1e-10)


def test_probes_per_sample_do_not_depend_on_the_batch():
    model = oracle(Cosine())
    x = model.sample(3, rng=0, dtype=torch.float64)
    kwargs = {"method": "hutchinson", "probes": 2, "steps": 5}
    whole = log_likelihood(model, x, rng=[1, 2, 3], **kwargs).log_prob
    alone = log_likelihood(model, x[1:2], rng=[2], **kwargs).log_prob
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-13, atol=1e-13)


class Net(nn.Module):
    condition_kinds = {}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 4))

    def forward(self, x, time, cond):
        return self.layers(torch.cat([x, time[:, None].to(x)], 1))


def test_likelihood_of_a_network_normalises():
    """The density of a model in one dimension, integrated over a fine line, is 1; its flow is that of the sampler."""
    torch.manual_seed(0)

    class Line(nn.Module):
        condition_kinds = {}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))

        def forward(self, x, time, cond):
            return self.layers(torch.cat([x, time[:, None].to(x)], 1))

    model = Denoiser(Line().double(), Gaussian(Rectified()), "velocity", shape=(1,))
    x = torch.linspace(-8.0, 8.0, 2001, dtype=torch.float64)[:, None]
    found = log_likelihood(model, x, steps=20)
    assert abs(float(torch.trapezoid(found.log_prob.exp(), x[:, 0])) - 1.0) < 1e-3
    back = sample(model, solver=Euler(), steps=2000, initial=found.latent)
    torch.testing.assert_close(back, x, rtol=0, atol=5e-3)


def test_one_by_one_and_batched_backward_agree_and_parameters_get_no_gradients():
    torch.manual_seed(0)
    model = Denoiser(Net().double(), Gaussian(Rectified()), "velocity", shape=(4,))
    x = torch.randn(3, 4, dtype=torch.float64)
    a = log_likelihood(model, x, steps=5, chunk=1)
    for chunk in (3, 64):
        torch.testing.assert_close(log_likelihood(model, x, steps=5, chunk=chunk).log_prob, a.log_prob)
    assert not a.log_prob.requires_grad and all(p.grad is None for p in model.parameters())
    assert a.nfe == 21  # and one to leave the clean end


def test_guided_likelihood_runs_under_no_grad():
    model = oracle(Cosine())
    x = model.sample(2, rng=0, dtype=torch.float64)
    label = {"label": torch.tensor([0, 1])}
    with torch.no_grad():
        one = log_likelihood(Free(model, 1.0), x, label, steps=5)
        torch.testing.assert_close(one.log_prob, log_likelihood(model, x, label, steps=5).log_prob)


def test_bits_per_dim():
    model = gaussian(Gaussian(Cosine()), torch.zeros(2, 3), std=1.0)
    x = torch.zeros(1, 2, 3, dtype=torch.float64)
    bits = log_likelihood(model, x, steps=10).bits_per_dim()
    torch.testing.assert_close(float(bits), 0.5 * math.log2(2.0 * math.pi), rtol=1e-6, atol=0)
    torch.testing.assert_close(log_likelihood(model, x, steps=10).bits_per_dim(2.0 / 256.0), bits + 7.0)


def test_bad_inputs():
    model = oracle(Cosine())
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(BadValue, match="Did you mean 'hutchinson'"):
        log_likelihood(model, x, method="hutchison")
    with pytest.raises(BadValue, match="unknown probe"):
        log_likelihood(model, x, method="hutchinson", probe="uniform")
    with pytest.raises(BadValue, match="given probes must be"):
        log_likelihood(model, x, method="hutchinson", probes=torch.ones(2, 2, 2))
    with pytest.raises(BadValue, match="probes must be at least 1"):
        log_likelihood(model, x, method="hutchinson", probes=0)
    with pytest.raises(BadValue, match="times must decrease"):
        log_likelihood(model, x, grid=[0.0, 1.0])
    with pytest.raises(BadValue, match="leave steps="):
        log_likelihood(model, x, steps=3, solver=Adaptive())
    with pytest.raises(BadValue, match="width"):
        log_likelihood(model, x, steps=2).bits_per_dim(0.0)

    class NoDensity(Moments):
        def log_prob(self, x, level, source=None):
            return Prior.log_prob(self, x, level, source)

    with pytest.raises(Incompatible, match="no log-density"):
        log_likelihood(model, x, steps=2, prior=NoDensity())


def test_missing_endpoint_is_refused_before_any_evaluation():
    denoiser = Denoiser(nn.Identity(), Interpolant())
    with pytest.raises(BadValue, match="kind 'endpoint'"):
        log_likelihood(denoiser, torch.randn(2, 3, dtype=torch.float64), steps=2)
