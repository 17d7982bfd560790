"""Exact laws of samplers: against closed forms, against Monte Carlo, and as the limit of many steps."""

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.guidance import Free
from condiff.process import EDM, Bridge, Cosine, Gaussian, Moments, Rectified, StudentT, oracles
from condiff.sampling import (
    DDIM,
    DDPM,
    SDE,
    Euler,
    GaussianLaw,
    PredictorCorrector,
    RungeKutta,
    affine_law,
    continuous_law,
    sample,
)

MEAN, COV = torch.tensor([0.7, -0.4]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
DATA = GaussianLaw(MEAN, COV)


def oracle(process):
    return oracles.gaussian(process, MEAN, COV)


def prior_law(process, mean=0.0):
    level = process.at(1.0)
    return GaussianLaw(torch.full((2,), mean).double(), float(level.noise) ** 2 * torch.eye(2).double())


@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["ode", "sde"])
@pytest.mark.parametrize("process", [Gaussian(Cosine()), Gaussian(Rectified())], ids=["cosine", "rectified"])
def test_exact_fields_carry_the_prior_to_the_data(process, noise):
    law = continuous_law(oracle(process), prior_law(process), noise=noise)
    assert law.distance(DATA) < 2e-6


def test_the_flow_of_one_gaussian_has_its_closed_form():
    """EDM, from N(m, s^2) to N(m, s'^2) independent of the data's: x' = mu + sqrt((C + s'^2) / (C + s^2)) (x - mu)."""
    process = Gaussian(EDM(sigma_max=10.0))
    model = oracles.gaussian(process, [0.3, -0.2], std=0.5)
    start = GaussianLaw(torch.tensor([1.0, 2.0]).double(), 4.0 * torch.eye(2).double())
    law = continuous_law(model, start, nodes=4000)
    factor = (0.25 / (0.25 + 100.0)) ** 0.5
    mu = torch.tensor([0.3, -0.2]).double()
    torch.testing.assert_close(law.mean, mu + factor * (start.mean - mu), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(law.cov, factor**2 * start.cov, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [(DDIM(), 1, 60), (Euler(), 1, 60), (DDIM(eta=1.0), 1, 60), (SDE(), 1, 60), (RungeKutta("rk4"), 4, 10)],
    ids=["ddim", "euler", "ddim-eta", "sde", "rk4"],
)
def test_samplers_converge_to_the_continuous_law_at_their_order(solver, order, steps):
    """Also where the field is guided, and the law isn't that of the data: with a law of its own for ODE and SDE."""
    process = Gaussian(Rectified())
    model = Free(Wide(process), scale=2.0)
    cond = {"label": torch.tensor([1])}
    noise = 1.0 if solver.stochastic else 0.0
    limit = continuous_law(model, prior_law(process), cond=cond, noise=noise, nodes=4000)
    errors = [affine_law(model, solver=solver, steps=n, cond=cond).distance(limit) for n in (steps, 2 * steps)]
    assert 0.85 < errors[0] / errors[1] / 2**order < 1.4
    assert errors[1] < 0.1


def test_guided_ode_and_sde_have_different_laws():
    """Guidance isn't the score of a diffused law: what is sampled depends on the noise."""
    process = Gaussian(Rectified())
    model, cond = Free(Wide(process), scale=2.0), {"label": torch.tensor([1])}
    ode, sde = (continuous_law(model, prior_law(process), cond=cond, noise=n) for n in (0.0, 1.0))
    assert ode.distance(sde) > 0.05


class Wide:
    """N(1, 0.6^2) for label 1, N(0, 1) without."""

    def __init__(self, process):
        self.process, self.shape, self.kinds = process, (2,), {"label": "label"}
        self.narrow = oracles.gaussian(process, [1.0, 1.0], std=0.6)
        self.wide = oracles.gaussian(process, [0.0, 0.0], std=1.0)

    def __call__(self, x_t, t, cond=None):
        level = self.process.at(t)
        keep = cond["label"].kept()[:, None]
        near, far = self.narrow(x_t, level), self.wide(x_t, level)
        return near.set("x0", torch.where(keep, near.x0, far.x0))


def test_the_law_is_that_of_the_samples():
    """Against 40,000 samples, at 7 steps, where a solver's law is far from the data's."""
    model = oracle(Gaussian(Rectified()))
    law = affine_law(model, solver=DDPM(), steps=7)
    assert law.distance(DATA) > 0.2
    x = sample(model, solver=DDPM(), steps=7, num=40_000, seed=0, dtype=torch.float64)
    drawn = GaussianLaw(x.mean(0), x.mT.cov())
    assert drawn.distance(law) < 0.03


def test_given_starts_and_endpoints():
    """A bridge starts at its endpoint; a prior with the data's moments changes the law of few steps."""
    process = Bridge(variance=0.5)
    joint_cov = torch.tensor([[0.5, 0.3], [0.3, 0.6]]).double()
    model = oracles.paired(process, torch.tensor([[0.2], [0.1]]), joint_cov)
    y = torch.tensor([[0.7]])
    laws = [affine_law(model, solver=DDIM(eta=1.0), steps=n, cond={"endpoint": y}) for n in (200, 400)]
    exact = GaussianLaw(
        torch.tensor([0.2 + 0.3 / 0.6 * (0.7 - 0.1)]).double(), torch.tensor([[0.5 - 0.3**2 / 0.6]]).double()
    )
    errors = [law.distance(exact) for law in laws]
    assert 1.7 < errors[0] / errors[1] < 2.2
    assert errors[1] < 0.025
    model = oracle(Gaussian(Rectified()))
    priors = (None, Moments(MEAN, 0.4))
    plain, told = (affine_law(model, solver=Euler(), grid=[0.7, 0.35, 0.0], prior=prior) for prior in priors)
    torch.testing.assert_close(told.mean, MEAN)  # the line of means is straight: Euler is exact on it
    assert (plain.mean - MEAN).abs().max() > 0.1


def test_what_is_not_affine_is_refused():
    model = oracles.mixture(Gaussian(Rectified()), [[-1.0, 0.0], [1.0, 0.0]], stds=0.1)
    with pytest.raises(Incompatible, match="isn't affine"):
        affine_law(model, solver=DDIM(), steps=5)
    with pytest.raises(Incompatible, match="isn't affine"):
        affine_law(oracle(Gaussian(Rectified())), solver=PredictorCorrector(DDIM()), steps=5)
    point = oracles.empirical(Gaussian(EDM(), StudentT(5.0)), [[0.1, 0.2]])
    with pytest.raises(Incompatible, match="numbers"):
        affine_law(point, solver=DDIM(), steps=5)
    with pytest.raises(BadValue, match="one row"):
        affine_law(model, solver=DDIM(), steps=5, cond={"label": torch.tensor([0, 1])})
