"""Guidance by observed entries: scores in closed form, population CRPS of an AR(1) oracle, steps by hand."""

from __future__ import annotations

import math

import pytest
import torch

from condiff.conditions import Condition
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Energy, Free, Quantile, SquaredError, quantile_levels
from condiff.metrics import crps
from condiff.process import Discrete, Gaussian, Rectified, oracles
from condiff.random import Tape
from condiff.sampling import DDIM, DDPM, Euler, affine_law, sample

L, KNOWN, T = 24, 16, 100
PROCESS = Gaussian(Discrete.ddpm(T, 1e-4, 0.1))
LAG = (torch.arange(L)[:, None] - torch.arange(L)).abs().double()
COV = 0.9**LAG
ORACLE = oracles.gaussian(PROCESS, torch.zeros(L, 1, dtype=torch.float64), COV)
MASK = (torch.arange(L) < KNOWN)[None, :, None]
STEPS = PROCESS.schedule.at_index(torch.arange(T - 1, -2, -1))


def known(y):
    return {"observed": Condition(y, "observation", mask=MASK[:, : y.shape[1]])}


def draws(num, seed=0):
    z = torch.randn(num, L, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z @ torch.linalg.cholesky(COV).mT)[..., None]


# Scores


@pytest.mark.parametrize("index", [0, 40, 99])
def test_scores_are_the_closed_forms(index):
    level = PROCESS.at(float(PROCESS.schedule.at_index(index)))
    ab, x, y = level.data**2, draws(3, 1), draws(3, 2)
    M = math.sqrt(1 - ab) * torch.linalg.inv(ab * COV + (1 - ab) * torch.eye(L, dtype=torch.float64))
    J = (torch.eye(L, dtype=torch.float64) - math.sqrt(1 - ab) * M) / math.sqrt(ab)
    seen, m = x[..., 0] @ J.mT, MASK[..., 0].double()
    k = quantile_levels(3)[:, None]
    want = {
        "mse": 2.0 * (m * (y[..., 0] - seen)) @ J,
        "quantile": (m * torch.where(y[..., 0] > seen, k, k - 1.0)) @ J,
    }
    for name, energy in {"mse": SquaredError(), "quantile": Quantile(quantile_levels(3))}.items():
        plain, guided = ORACLE(x, level), Energy(ORACLE, energy)(x, level, known(y))
        torch.testing.assert_close((guided.score - plain.score)[..., 0], want[name], rtol=1e-6, atol=1e-6)
        noise = plain.noise - math.sqrt(1 - ab) * want[name][..., None]  # the DDIM form
        torch.testing.assert_close(guided.noise, noise, rtol=1e-6, atol=1e-6)


# Samplers by hand


@pytest.mark.parametrize("shift", ["mean", "state"])
def test_a_step_is_the_papers_and_the_released_codes(shift):
    index, scale, y = 60, 3.0, draws(2, 5)
    betas, ab = PROCESS.schedule.betas, PROCESS.schedule.table
    variance = float(betas[index] * (1 - ab[index - 1]) / (1 - ab[index]))
    start, xi = draws(2, 3), draws(2, 4)
    energy = SquaredError()

    def g(x):
        u = x.clone().requires_grad_()
        eps = ORACLE(u, float(PROCESS.schedule.at_index(index))).noise
        seen = (u - (1 - ab[index]).sqrt() * eps) / ab[index].sqrt()
        (-(MASK * (seen - y).square()).sum()).backward()
        return u.grad

    eps = ORACLE(start, float(PROCESS.schedule.at_index(index))).noise
    mu = (start - betas[index] / (1 - ab[index]).sqrt() * eps) / (1 - betas[index]).sqrt()
    if shift == "mean":
        want = mu + scale * variance * g(start) + math.sqrt(variance) * xi
    else:
        moved = mu + math.sqrt(variance) * xi
        want = moved + scale * variance * g(moved)
    got = sample(
        Energy(ORACLE, energy, scale, shift=shift),
        solver=DDPM(),
        grid=PROCESS.schedule.at_index(torch.tensor([index, index - 1])),
        initial=start,
        cond=known(y),
        rng=Tape([xi]),
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", ["score", "mean", "state"])
def test_scale_zero_is_plain_sampling_bit_for_bit(shift):
    options = {"solver": DDPM(), "grid": STEPS, "num": 4, "seed": 1, "dtype": torch.float64}
    guided = Energy(ORACLE, SquaredError(), 0.0, shift=shift)
    assert torch.equal(sample(guided, cond=known(draws(4)), **options), sample(ORACLE, **options))


@pytest.mark.parametrize("shift", ["mean", "state"])
def test_there_is_no_guidance_at_the_last_step(shift):
    start = draws(2, 3)
    last = {"solver": DDPM(), "grid": STEPS[-2:], "initial": start, "seed": 0}
    guided = Energy(ORACLE, SquaredError(), 5.0, shift=shift)
    assert torch.equal(sample(guided, cond=known(draws(2)), **last), sample(ORACLE, **last))


def test_what_is_held_stays_with_guided_states():
    start, held = draws(2, 3), MASK.expand(2, L, 1)
    guided = Energy(ORACLE, SquaredError(), 1.0, shift="state")
    end = sample(guided, solver=DDPM(), grid=STEPS, initial=start, cond=known(start), held=held, seed=0)
    assert torch.equal(end[held], start[held]) and not torch.equal(end, start)


# The AR(1) oracle, population CRPS


def normal_crps(error_var, var):
    """E CRPS(N(m, var), X) for X - m ~ N(0, error_var)."""
    return math.sqrt(2.0 / math.pi) * ((error_var + var).sqrt() - (var / 2.0).sqrt())


def population(denoiser, solver, grid):
    """CRPS over the unobserved entries, averaged over series: the sampler is affine in (state, noise, observation)."""
    zero = torch.zeros(1, L, 1, dtype=torch.float64)
    spread = affine_law(denoiser, solver=solver, grid=grid, cond=known(zero)).cov.diagonal()
    unit = torch.eye(L, dtype=torch.float64)[:KNOWN, :, None]
    still = Tape(torch.zeros_like(unit) for _ in range(T + 1))
    mean = sample(denoiser, solver=solver, grid=grid, initial=torch.zeros_like(unit), cond=known(unit), rng=still)
    mean = mean[..., 0].mT  # (L, KNOWN): the map from what is observed
    error = torch.cat([-mean, torch.zeros(L, L - KNOWN, dtype=torch.float64)], 1) + torch.eye(L, dtype=torch.float64)
    error_var = (error @ COV @ error.mT).diagonal()
    return float(normal_crps(error_var, spread)[KNOWN:].mean())


def test_population_crps_without_guidance_and_of_the_posterior():
    var = posterior()[1]
    assert float(normal_crps(var, var).mean()) == pytest.approx(0.4158, abs=1e-4)
    assert population(Energy(ORACLE, SquaredError(), 0.0), DDPM(), STEPS) == pytest.approx(0.5642, abs=1e-4)


@pytest.mark.parametrize(
    ("shift", "scale", "solver", "want"),
    [
        ("mean", 1.0, DDPM(), 0.4389),
        ("state", 1.0, DDPM(), 0.4389),
        ("mean", 4.0, DDPM(), 0.4493),
        ("state", 4.0, DDPM(), 0.4498),
        ("score", 0.5, DDIM(), 0.4582),
        ("score", 1.0, DDIM(), 0.4664),
    ],
)
def test_population_crps_of_guidance_by_squares(shift, scale, solver, want):
    assert population(Energy(ORACLE, SquaredError(), scale, shift=shift), solver, STEPS) == pytest.approx(
        want, abs=1e-4
    )


def posterior():
    """The map from what is observed to the mean of each horizon step, and the variance around it."""
    gain = COV[KNOWN:, :KNOWN] @ torch.linalg.inv(COV[:KNOWN, :KNOWN])
    return gain, (COV[KNOWN:, KNOWN:] - gain @ COV[:KNOWN, KNOWN:]).diagonal()


def quantile_excess(scale, series, members=100):
    """CRPS of the samples (pairs with themselves counted) over the exact posterior's, and its standard error.

    The expectation over what the horizon turns out to be is taken in closed form.
    """
    truth = draws(series, 7)
    gain, var = posterior()
    mean, std = truth[:, :KNOWN, 0] @ gain.mT, var.sqrt()
    guided = Energy(ORACLE, Quantile(quantile_levels(members, series)), scale, shift="mean")
    y = truth.repeat_interleave(members, dim=0)
    made = sample(guided, solver=DDPM(), grid=STEPS, num=len(y), cond=known(y), seed=0, dtype=torch.float64)
    made = made[:, KNOWN:, 0].unflatten(0, (series, members)).movedim(1, 0)
    away = (made - mean) / std
    normal = torch.distributions.Normal(0.0, 1.0)
    distance = std * (away * (2.0 * normal.cdf(away) - 1.0) + 2.0 * normal.log_prob(away).exp())  # E|x - X|
    spread = crps(made, made[0], unbiased=False) - (made - made[0]).abs().mean(0)  # -E|x - x'| / 2
    per_series = (distance.mean(0) + spread - normal_crps(var, var)).mean(1)
    return float(per_series.mean()), float(per_series.std() / math.sqrt(series))


EXCESS = [(1.0, 0.043), (4.0, 0.020), (8.0, 0.020)]  # +- 0.003


@pytest.mark.parametrize(("scale", "want"), EXCESS)
def test_excess_crps_of_guidance_by_quantiles(scale, want):
    excess, error = quantile_excess(scale, 64)
    assert error < 0.01 and excess == pytest.approx(want, abs=0.003 + 3.0 * error)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "want"), EXCESS)
def test_excess_crps_of_guidance_by_quantiles_on_many_series(scale, want):
    excess, error = quantile_excess(scale, 1024)
    assert error < 0.002 and excess == pytest.approx(want, abs=0.003 + error)


# Energies


def test_what_is_not_observed_may_hold_anything():
    y = draws(2)
    holes = torch.where(MASK, y, torch.nan)
    for energy in (SquaredError(), Quantile(quantile_levels(2))):
        level = PROCESS.at(0.3)
        x = draws(2, 9)
        one, other = (Energy(ORACLE, energy)(x, level, known(v)).noise for v in (y, holes))
        assert torch.equal(one, other) and torch.isfinite(one).all()


def test_levels_of_the_members_of_each_group():
    torch.testing.assert_close(quantile_levels(3, 2), torch.tensor([0.25, 0.5, 0.75] * 2, dtype=torch.float64))


Y = draws(2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Quantile(torch.tensor([0.5, 1.0])), BadValue, "between 0 and 1"),
        (lambda: Quantile([0.5]), BadType, "tensor of floats"),
        (lambda: quantile_levels(0), BadValue, "at least 1"),
        (lambda: Energy(ORACLE, SquaredError())(Y, 0.5), BadValue, "observation"),
        (lambda: Energy(ORACLE, SquaredError())(Y, 0.5, known(Y[:, :4])), BadValue, "must"),
        (lambda: Energy(ORACLE, Quantile(quantile_levels(3)))(Y, 0.5, known(Y)), BadValue, "3 quantile levels"),
        (lambda: Energy(ORACLE, SquaredError(), shift="median"), BadValue, "unknown shift"),
        (lambda: Energy(ORACLE, SquaredError(), shift="mean", norm="relative"), Incompatible, "unit"),
        (
            lambda: sample(Energy(ORACLE, SquaredError(), shift="mean"), solver=DDIM(), steps=2, cond=known(Y)),
            Incompatible,
            "adds no noise",
        ),
        (
            lambda: sample(Energy(ORACLE, SquaredError(), shift="state"), solver=Euler(), steps=2, cond=known(Y)),
            Incompatible,
            "adds no noise",
        ),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_mean_that_another_guidance_hides_is_refused():
    labelled = oracles.mixture(Gaussian(Rectified()), [[-1.0], [1.0]], stds=0.5, labels=[0, 1])
    inner = Energy(labelled, lambda x0, level, cond: x0.square().flatten(1).sum(1), shift="mean")
    with pytest.raises(Incompatible, match="around all other"):
        sample(Free(inner, scale=2.0), solver=DDPM(), steps=3, cond={"label": [0, 1]}, seed=0)
