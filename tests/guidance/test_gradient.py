"""Gradient guidance against closed forms."""

from typing import ClassVar

import pytest
import torch

from condiff.errors import BadValue, Degenerate, Incompatible, NonFinite
from condiff.guidance import Classifier, Energy, Free, gradient
from condiff.process import Cosine, Gaussian, Normal, Prediction, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import DDIM, Uniform, sample

PROCESS = Gaussian(Cosine())
LABEL = {"label": torch.tensor([0, 1, 2, 0, 1, 2])}


def oracle(process=PROCESS):
    means = [[-1.0, 0.3], [1.0, 0.0], [0.5, 2.0], [-2.0, -1.0]]
    return mixture(process, means, stds=[0.3, 0.5, 0.4, 0.7], weights=[1, 2, 3, 4], labels=[0, 0, 1, 2])


class Says:
    """An oracle that is told nothing and predicts in the quantity of choice."""

    kinds: ClassVar = {"label": "label"}

    def __init__(self, inner, kind):
        self.inner, self.kind, self.process, self.shape = inner, kind, inner.process, inner.shape

    def __call__(self, x, t, cond=None):
        p = self.inner(x, t)
        return Prediction(x, p.level, {self.kind: p.to(self.kind)})


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), VPLinear()])
@pytest.mark.parametrize("kind", ["x0", "noise", "velocity", "v", "score"])
@pytest.mark.parametrize("t", [0.4, torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.95])])
def test_the_exact_classifier_makes_the_conditional_model(x, schedule, kind, t):
    model = oracle(Gaussian(schedule))

    def log_prob(u, level, cond):
        return model.class_log_prob(u, level).gather(1, cond["label"].value[:, None])[:, 0]

    with torch.no_grad():
        said = Classifier(Says(model, kind), log_prob)(x, t, LABEL)
        twice = Classifier(Says(model, kind), log_prob, scale=2.0)(x, t, LABEL)
    torch.testing.assert_close(said.score, model.score(x, t, LABEL), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(said.x0, model(x, t, LABEL).x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(twice.x0, Free(model, 2.0)(x, t, LABEL).x0, rtol=1e-10, atol=1e-10)
    assert not said.x0.requires_grad


MATRIX = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
SEEN = torch.tensor([0.7, -1.0], dtype=torch.float64)


def residual(x0, level, cond):
    return 0.5 * (x0 @ MATRIX.T - SEEN).square().sum(-1)


@pytest.mark.parametrize("process", [PROCESS, Gaussian(Rectified())])
def test_energy_through_the_denoiser_on_a_gaussian(x, process):
    """grad_x 1/2 |H x0hat - y|^2 = J^T H^T (H x0hat - y), J = a C (a^2 C + s^2)^-1."""
    model, level = gaussian(process, [0.2, -0.4], COV), process.at(0.6)
    a, s = level.data, level.noise
    jacobian = a * COV @ torch.linalg.inv(a * a * COV + s * s * torch.eye(2, dtype=torch.float64))
    x0 = model(x, level).x0
    wanted = (x0 @ MATRIX.T - SEEN) @ MATRIX @ jacobian
    said = Energy(model, residual, scale=1.7)(x, level)
    torch.testing.assert_close(said.score, model(x, level).score - 1.7 * wanted, rtol=1e-10, atol=1e-10)


def test_noise_aware_energy_is_the_exact_posterior(x):
    """p(y | x_t) of a linear observation has variance H Cov(x0 | x_t) H^T + nu^2; with it guidance is exact."""
    nu, t = 0.3, 0.5
    model = gaussian(PROCESS, [0.2, -0.4], COV)
    cov = MATRIX @ model.posterior_cov(x[:1], t)[0] @ MATRIX.T + nu**2 * torch.eye(2, dtype=torch.float64)

    def energy(x0, level, cond):
        away = x0 @ MATRIX.T - SEEN
        return 0.5 * (away @ torch.linalg.inv(cov) * away).sum(-1)

    gain = COV @ MATRIX.T @ torch.linalg.inv(MATRIX @ COV @ MATRIX.T + nu**2 * torch.eye(2, dtype=torch.float64))
    mean = model.components.means[0]
    posterior = gaussian(PROCESS, mean + gain @ (SEEN - MATRIX @ mean), _symmetric(COV - gain @ MATRIX @ COV))
    said = Energy(model, energy)(x, t)
    torch.testing.assert_close(said.x0, posterior(x, t).x0, rtol=1e-10, atol=1e-10)


def _symmetric(c):
    return 0.5 * (c + c.mT)


def test_not_through_the_denoiser_takes_the_gradient_at_x0(x):
    model = oracle()
    said = Energy(model, residual, scale=0.5, through=False)(x, 0.6)
    grad = (model(x, 0.6).x0 @ MATRIX.T - SEEN) @ MATRIX
    torch.testing.assert_close(said.score, model(x, 0.6).score - 0.5 * grad)
    shift = Energy(model, residual, scale=0.5, through=False, shift="x0")(x, 0.6)
    torch.testing.assert_close(shift.x0, model(x, 0.6).x0 - 0.5 * grad)
    shift = Energy(Says(model, "velocity"), residual, scale=0.5, through=False, shift="noise")(x, 0.6)
    torch.testing.assert_close(shift.noise, model(x, 0.6).noise + 0.5 * grad)


def test_norms_are_per_sample(x):
    def rms(v):
        return v.square().mean(1).sqrt()

    model = oracle()
    plain = model(x, 0.6)
    unit = Energy(model, residual, norm="unit", shift="x0")(x, 0.6)
    torch.testing.assert_close(rms(unit.x0 - plain.x0), torch.ones(6, dtype=torch.float64))
    relative = Energy(model, residual, 0.1, norm="relative", shift="x0")(x, 0.6)
    torch.testing.assert_close(rms(relative.x0 - plain.x0), 0.1 * rms(plain.x0))
    for i in range(6):
        alone = Energy(model, residual, norm="unit", shift="x0")(x[i : i + 1], 0.6)
        torch.testing.assert_close(alone.x0, unit.x0[i : i + 1])


def test_interval_and_strength_per_row(x):
    model = oracle()
    guided = Energy(model, residual, interval=(0.2, 0.5))
    torch.testing.assert_close(guided(x, 0.51).x0, model(x, 0.51).x0, rtol=0, atol=0)
    assert not torch.allclose(guided(x, 0.5).x0, model(x, 0.5).x0)
    w = torch.linspace(0.0, 2.0, 6)
    rows = Energy(model, residual, w)(x, 0.5).score
    full = Energy(model, residual, 1.0)(x, 0.5).score
    plain = model(x, 0.5).score
    torch.testing.assert_close(rows, plain + w[:, None] * (full - plain))


def test_gradients_flow_through_a_guided_sampler():
    """Second derivatives: finite differences of the sample with respect to the initial state and a parameter."""
    model = oracle()
    target = torch.tensor([0.5, 0.5], dtype=torch.float64)

    def run(x, target):
        def energy(x0, level, cond):
            return (x0 - target).square().sum(-1)

        guided = Energy(model, energy, scale=0.5)
        return sample(guided, solver=DDIM(), grid=Uniform(start=0.9), steps=4, initial=x, grad=True)

    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, target.requires_grad_()), eps=1e-6, atol=1e-6)
    assert not sample(Energy(model, residual), solver=DDIM(), grid=Uniform(start=0.9), steps=2, initial=x).requires_grad


def test_the_infinite_shift_at_pure_noise_is_an_error_that_says_what_to_do(x):
    guided = Energy(Says(oracle(), "velocity"), residual)
    with pytest.raises(Degenerate, match=r"leave this end out with interval="):
        guided(x, 1.0)
    Energy(Says(oracle(), "velocity"), residual, interval=(0.0, 0.999))(x, 1.0)
    Energy(Says(oracle(), "velocity"), residual, shift="x0")(x, 1.0)
    torch.testing.assert_close(
        Energy(Says(oracle(), "noise"), lambda u, level, cond: u.square().sum(-1), at="x_t")(x, 1.0).score,
        oracle()(x, 1.0).score - 2.0 * x,
    )


def test_gradient_of_a_function(x):
    grad = gradient(lambda u, level, cond: level.t * u.pow(3).sum(-1))
    torch.testing.assert_close(grad(x, PROCESS.at(0.5), {}), 1.5 * x**2)


class Heavy(Normal):
    @property
    def gaussian(self):
        return False


@pytest.mark.parametrize(
    ("energy", "error", "match"),
    [
        (lambda u, level, cond: u.square().sum(), BadValue, "one value per sample"),
        (lambda u, level, cond: torch.zeros(6), BadValue, "does not depend"),
        (lambda u, level, cond: u.detach().sum(1), BadValue, "does not depend"),
        (lambda u, level, cond: (0.0 * u).norm(dim=1).log(), NonFinite, "not finite"),
    ],
)
def test_bad_energies_are_refused(x, energy, error, match):
    with pytest.raises(error, match=match):
        Energy(oracle(), energy)(x, 0.5)


def test_bad_options_are_refused(x):
    with pytest.raises(BadValue, match="unknown at 'xt'"):
        Energy(oracle(), residual, at="xt")
    with pytest.raises(BadValue, match="unknown shift"):
        Energy(oracle(), residual, shift="velocity")
    with pytest.raises(BadValue, match="unknown norm"):
        Energy(oracle(), residual, norm="batch")
    with pytest.raises(BadValue, match="scale must be finite"):
        Classifier(oracle(), residual, scale=float("nan"))
    with torch.inference_mode(), pytest.raises(Incompatible, match="no_grad"):
        Energy(oracle(), residual)(x, 0.5)

    class Model:
        process, shape = Gaussian(Cosine(), Heavy()), (2,)

    with pytest.raises(Incompatible, match="not Gaussian"):
        Energy(Model(), residual)
    Energy(Model(), residual, shift="x0")


def test_rows_outside_the_interval_are_not_shifted_where_a_shift_is_infinite():
    """A row at pure noise, outside, doesn't disturb one inside; nor does a strength of 0."""
    model = gaussian(Gaussian(Rectified()), torch.zeros(3), std=0.5)
    said = Says(model, "velocity")
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for options in ({"interval": (0.0, 0.9)}, {"scale": torch.tensor([0.0, 1.0])}):
        guided = Energy(said, lambda u, level, cond: u.square().sum(1), **options)
        out = guided(x, t)
        assert torch.equal(out.x0[0], said(x, t).x0[0])
        alone = Energy(said, lambda u, level, cond: u.square().sum(1))(x[1:], 0.5)
        torch.testing.assert_close(out.x0[1:], alone.x0)
