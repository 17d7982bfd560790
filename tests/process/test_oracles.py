"""Oracles against definitions: integrals, brute force over points, Tweedie, Bayes."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.process import (
    EDM,
    Bridge,
    Cosine,
    Gaussian,
    Interpolant,
    NoiseLaw,
    Normal,
    Process,
    Rectified,
    Residual,
    StudentT,
    VPLinear,
)
from condiff.process.oracles import empirical, gaussian, mixture, observed, paired

SCHEDULES = [Cosine(), VPLinear(), Rectified(shift=2.0), EDM(sigma_max=5.0, rho=1.0)]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def float64(w):
    return torch.as_tensor(w, dtype=torch.float64)


def times(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(*shape, seed=2):
    a = rand(*shape, shape[-1], seed=seed)
    return a @ a.mT + 0.2 * torch.eye(shape[-1], dtype=torch.float64)


def full(process, labels=(0, 1, 1)):
    return mixture(process, rand(3, 2, 2), spd(3, 4), weights=[1.0, 2.0, 3.0], labels=labels)


def diagonal(process):
    return mixture(process, rand(3, 2, 2), stds=rand(3, 2, 2).abs() + 0.2, weights=[1, 2, 3], labels=[0, 1, 1])


def points(process):
    return empirical(process, rand(7, 2, 2), labels=[0, 1, 1, 0, 1, 0, 1], weights=range(1, 8))


@dataclass(frozen=True)
class Arch(Process):
    noise_law: NoiseLaw = field(default_factory=Normal)

    def curves(self, t):
        return (
            1 - t,
            t,
            torch.sin(math.pi * t),
            -torch.ones_like(t),
            torch.ones_like(t),
            math.pi * torch.cos(math.pi * t),
        )

    @property
    def has_source(self):
        return True


# Denoiser, score and likelihood agree


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("make", [full, diagonal, points])
@pytest.mark.parametrize("t", [0.4, times(5), times(5, 2), 1.0, torch.tensor(0.2)])
@pytest.mark.parametrize("cond", [None, {"label": torch.tensor([0, 1, 1, 0, 1])}])
def test_score_is_the_gradient_of_log_prob_and_tweedie_holds(schedule, make, t, cond):
    oracle = make(Gaussian(schedule))
    x = rand(5, 2, 2, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, t, cond).sum(), x)
    said = oracle(x, t, cond)
    a, s = (w.reshape(w.shape + (1,) * (3 - w.ndim)) for w in map(float64, (said.level.data, said.level.noise)))
    torch.testing.assert_close(oracle.score(x, t, cond), gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a * said.x0, x + s**2 * gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(said.score, gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(a * said.x0 + s * said.noise, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.97])
def test_one_dimension_against_quadrature(schedule, t):
    means, stds, w = torch.tensor([[-1.0], [0.5]]), [0.3, 0.6], torch.tensor([0.3, 0.7]).double()
    oracle = mixture(Gaussian(schedule), means, stds=stds, weights=w)
    x0 = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    prior = sum(w[k] * torch.exp(torch.distributions.Normal(means[k].double(), stds[k]).log_prob(x0)) for k in (0, 1))
    level = oracle.process.at(t)
    x = torch.tensor([[-1.3], [0.2], [2.0]], dtype=torch.float64)
    joint = prior * torch.exp(torch.distributions.Normal(level.data * x0, level.noise).log_prob(x))
    marginal = torch.trapezoid(joint, x0)
    mean = torch.trapezoid(joint * x0, x0) / marginal
    second = torch.trapezoid(joint * x0**2, x0) / marginal
    torch.testing.assert_close(oracle.log_prob(x, t), marginal.log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(oracle(x, t).x0[:, 0], mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(oracle.posterior_cov(x, t)[:, 0, 0], second - mean**2, rtol=1e-7, atol=1e-9)
    grid = torch.linspace(-40, 40, 200001, dtype=torch.float64)
    total = torch.trapezoid(oracle.log_prob(grid[:, None], t).exp(), grid)
    assert abs(float(total) - 1.0) < 1e-9


@pytest.mark.parametrize("make", [full, diagonal, points])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_ends_are_exact(make, schedule):
    oracle = make(Gaussian(schedule))
    x = rand(4, 2, 2, seed=5)
    start = oracle(x, 0.0)
    torch.testing.assert_close(start.x0, x / oracle.process.at(0.0).data)
    assert torch.isfinite(start.noise).all()
    end = oracle(x, 1.0)
    assert torch.isfinite(end.x0).all() and torch.isfinite(end.noise).all()
    if oracle.process.at(1.0).data == 0.0:
        mean = oracle.log_weights.exp() @ getattr(oracle, "points", None if make is points else oracle.components.means)
        torch.testing.assert_close(end.x0, mean.reshape(1, 2, 2).expand(4, 2, 2), rtol=1e-12, atol=1e-12)


def test_ends_join_continuously():
    oracle = full(Gaussian(Rectified()))
    x = rand(4, 2, 2, seed=5)
    for near, end in ((1e-7, 0.0), (1 - 1e-7, 1.0)):
        torch.testing.assert_close(oracle(x, near).x0, oracle(x, end).x0, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(oracle(x, near).noise, oracle(x, end).noise, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(oracle.score(x, near), oracle.score(x, end), rtol=1e-4, atol=1e-4)


def test_diagonal_equals_full_and_isotropic_equals_diagonal():
    process, x = Gaussian(Cosine()), rand(5, 2, 2, seed=4)
    stds = rand(3, 2, 2).abs() + 0.2
    a = mixture(process, rand(3, 2, 2), stds=stds)
    b = mixture(process, rand(3, 2, 2), torch.diag_embed(stds.flatten(1) ** 2))
    c, d = (
        mixture(process, rand(3, 2, 2), stds=v)
        for v in ([0.3, 0.4, 0.5], rand(3, 2, 2) * 0 + torch.tensor([0.3, 0.4, 0.5]).double()[:, None, None])
    )
    for t in (0.3, times(5), times(5, 2)):
        torch.testing.assert_close(a(x, t).x0, b(x, t).x0, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(a.log_prob(x, t), b.log_prob(x, t), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(c(x, t).x0, d(x, t).x0, rtol=1e-7, atol=1e-7)


def test_a_time_per_frame_is_one_joint_gaussian():
    """Against the textbook conditional of (x0, x_t) with A = diag(a), S = diag(s)."""
    process, t, x = Gaussian(VPLinear()), times(5, 2), rand(5, 2, 3, seed=8)
    mean, cov = rand(2, 3), spd(6)
    oracle, level = gaussian(process, mean, cov), process.at(t)
    for i in range(5):
        a, s = (w[i].repeat_interleave(3) for w in (level.data, level.noise))
        gain = torch.diag(a) @ cov @ torch.diag(a) + torch.diag(s**2)
        x0 = mean.flatten() + cov @ torch.diag(a) @ torch.linalg.inv(gain) @ (x[i].flatten() - a * mean.flatten())
        torch.testing.assert_close(oracle(x, t).x0[i].flatten(), x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [full, diagonal, points])
def test_clean_frames_stay_and_inform_the_others(make):
    oracle = make(Gaussian(Cosine()))
    x0 = rand(7, 2, 2)[:4] if make is points else oracle.sample(4, 0, dtype=torch.float64)
    t = torch.tensor([[0.0, 0.8]] * 4, dtype=torch.float64)
    x = oracle.process.forward(x0, t, rng=1).x_t
    said = oracle(x, t)
    torch.testing.assert_close(said.x0[:, 0], x0[:, 0])
    torch.testing.assert_close(oracle(x, t.clamp_min(1e-6)).x0, said.x0, rtol=1e-4, atol=1e-4)
    if make is points:
        torch.testing.assert_close(said.x0, x0)  # the first frame identifies the point


# Classes


@pytest.mark.parametrize("make", [full, points])
@pytest.mark.parametrize("t", [0.3, 1.0, times(5)])
def test_classes_are_consistent_with_bayes(make, t):
    oracle = make(Gaussian(Cosine()))
    x = rand(5, 2, 2, seed=6).requires_grad_()
    log_y = oracle.class_log_prob(x, t)
    torch.testing.assert_close(log_y.logsumexp(-1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    weights = oracle.log_weights.exp()
    for y in (0, 1):
        cond = {"label": torch.full((5,), y)}
        log_prior = weights[oracle.labels == y].sum().log()
        bayes = oracle.log_prob(x, t, cond) + log_prior - oracle.log_prob(x, t)
        torch.testing.assert_close(log_y[:, y], bayes, rtol=1e-10, atol=1e-12)
        (gradient,) = torch.autograd.grad(log_y[:, y].sum(), x, retain_graph=True)
        torch.testing.assert_close(oracle.score(x, t, cond), oracle.score(x, t) + gradient, rtol=1e-9, atol=1e-10)


def test_guided_score_adds_the_classifier():
    oracle = full(Gaussian(Cosine()))
    x, y = rand(5, 2, 2, seed=6).requires_grad_(), torch.tensor([0, 1, 1, 0, 1])
    (gradient,) = torch.autograd.grad(oracle.class_log_prob(x, 0.5).gather(1, y[:, None]).sum(), x)
    guided = oracle.guided_score(x, 0.5, {"label": y}, 3.0)
    torch.testing.assert_close(guided, oracle.score(x, 0.5) + 3.0 * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [full, points])
def test_a_dropped_label_is_the_marginal_row_by_row(make):
    oracle, x = make(Gaussian(Cosine())), rand(3, 2, 2)
    y = torch.tensor([0, 99, 1])
    cond = Conditions({"label": Condition(y, "label", keep=torch.tensor([True, False, True]))})
    said = oracle(x, 0.5, cond).x0
    torch.testing.assert_close(said[1], oracle(x, 0.5).x0[1])
    torch.testing.assert_close(said[::2], oracle(x[::2], 0.5, {"label": y[::2]}).x0)
    assert not torch.allclose(said[0], oracle(x, 0.5).x0[0])
    with pytest.raises(BadValue, match="label 99"):
        oracle(x, 0.5, {"label": y})


def test_a_class_without_parts_has_probability_zero_and_finite_gradients():
    oracle = full(Gaussian(Cosine()), labels=[0, 2, 2])
    x = rand(2, 2, 2).requires_grad_()
    log_y = oracle.class_log_prob(x, 0.5)
    assert (log_y[:, 1] == -math.inf).all()
    log_y[:, [0, 2]].sum().backward()
    assert torch.isfinite(x.grad).all()


# Draws and moments


def test_draws_have_the_exact_moments_and_depend_on_their_own_seed():
    oracle = full(Gaussian(Cosine()))
    x, y = oracle.sample_labelled(40000, 0, dtype=torch.float64)
    mean, cov = oracle.moments()
    torch.testing.assert_close(x.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x.flatten(1).mT), cov[0], rtol=0.03, atol=0.08)
    torch.testing.assert_close((y == 1).double().mean(), torch.tensor(5 / 6).double(), rtol=0, atol=0.01)
    rows = oracle.sample(3, [5, 6, 7], cond={"label": torch.tensor([0, 1, 1])})
    torch.testing.assert_close(rows[1:2], oracle.sample(1, [6], cond={"label": torch.tensor([1])}), rtol=0, atol=0)
    data = points(Gaussian(Cosine())).sample(
        50, 0, cond={"label": torch.zeros(50, dtype=torch.long)}, dtype=torch.float64
    )
    assert {int((rand(7, 2, 2) == row).all((1, 2)).nonzero()) for row in data} == {0, 3, 5}


def test_moments_follow_the_level():
    oracle = full(Gaussian(VPLinear()))
    level = oracle.process.at(0.5)
    (m0, c0), (m, c) = oracle.moments(), oracle.moments(0.5)
    torch.testing.assert_close(m, level.data * m0)
    torch.testing.assert_close(c, level.data**2 * c0 + level.noise**2 * torch.eye(4, dtype=torch.float64))


# Finite data


@pytest.mark.parametrize("law", [Normal(), StudentT(2.5), StudentT(64.0)])
@pytest.mark.parametrize("t", [0.3, times(6)])
def test_finite_data_against_brute_force(law, t):
    process = Gaussian(EDM(sigma_max=3.0, rho=1.0), law)
    oracle, data, x = points(process), rand(7, 2, 2), rand(6, 2, 2, seed=9)
    level = process.at(t)
    a, s = (float64(w).expand(6) for w in (level.data, level.noise))
    for i in range(6):
        z = (x[i] - a[i] * data) / s[i]
        if isinstance(law, Normal):
            log = -0.5 * (z**2).sum((1, 2)) - 2 * math.log(2 * math.pi)
        else:
            df = law.df
            cov = torch.eye(4, dtype=torch.float64)
            log = -(4 + df) / 2 * torch.log1p((z**2).sum((1, 2)) / df) + math.lgamma((4 + df) / 2)
            log = log - math.lgamma(df / 2) - 2 * math.log(df * math.pi) - 0.5 * torch.logdet(cov)
        log = log + (torch.arange(1, 8).double() / 28).log()
        r = log.softmax(0)
        torch.testing.assert_close(oracle(x, t).x0[i], torch.einsum("n,nij->ij", r, data), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(oracle.log_prob(x, t)[i], log.logsumexp(0) - 4 * s[i].log(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(oracle.posterior(x, t)[i], r, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("df", [1.0, 7.0])
def test_student_score_is_the_gradient_but_not_tweedie(df):
    oracle, x = points(Gaussian(EDM(sigma_max=3.0, rho=1.0), StudentT(df))), rand(6, 2, 2, seed=9).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, 0.4).sum(), x)
    torch.testing.assert_close(oracle.score(x, 0.4), gradient, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(-oracle(x, 0.4).noise / oracle.process.at(0.4).noise, gradient, rtol=0.05)
    with pytest.raises(Incompatible, match="not Gaussian"):
        _ = oracle(x, 0.4).score


def test_student_tends_to_normal_at_first_order():
    """PFGM++: |denoiser_df - denoiser_inf| * df tends to a constant."""
    x, schedule = rand(6, 2, 2, seed=9), EDM(sigma_max=3.0, rho=1.0)
    exact = points(Gaussian(schedule))(x, 0.4).x0
    gaps = [float((points(Gaussian(schedule, StudentT(df)))(x, 0.4).x0 - exact).norm()) * df for df in (1e3, 1e4, 1e5)]
    assert abs(gaps[1] / gaps[2] - 1.0) < 0.01 and gaps[2] > 0.1
    same = points(Gaussian(schedule, StudentT(math.inf)))
    torch.testing.assert_close(same(x, 0.4).x0, exact, rtol=0, atol=0)


def test_finite_data_stay_exact_at_tiny_noise_and_in_chunks(monkeypatch):
    process = Gaussian(EDM())
    oracle, data = points(process), rand(7, 2, 2)
    forward = process.forward(data, 0.02, rng=0)  # sigma = 1e-10
    said = oracle(forward.x_t, 0.02)
    torch.testing.assert_close(said.x0, data, rtol=0, atol=0)
    exact = -0.5 * (forward.noise**2).sum((1, 2)) - 4 * math.log(forward.level.noise) - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(oracle.log_prob(forward.x_t, 0.02), exact + oracle.log_weights, rtol=1e-5, atol=0)
    whole = [oracle(data, times(7)).x0, oracle.score(data, 0.6), oracle.class_log_prob(data, 0.6)]
    monkeypatch.setattr("condiff.process.oracles.finite.CHUNK", 15)
    chunked = [oracle(data, times(7)).x0, oracle.score(data, 0.6), oracle.class_log_prob(data, 0.6)]
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)


# Observations


def test_gaussian_given_an_observation_is_the_textbook_conditional():
    process, mean, cov, a = Gaussian(Cosine()), rand(2, 2), spd(4), rand(3, 4, seed=7)
    y, std = rand(3, seed=8), 0.3
    oracle = observed(gaussian(process, mean, cov), a, y, std)
    precision = torch.linalg.inv(cov) + a.mT @ a / std**2
    new_cov = torch.linalg.inv(precision)
    new_mean = new_cov @ (torch.linalg.solve(cov, mean.flatten()) + a.mT @ y / std**2)
    m, c = oracle.moments()
    torch.testing.assert_close(m.flatten(), new_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(c[0], new_cov, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [full, points])
@pytest.mark.parametrize("cond", [None, {"label": torch.tensor([1])}])
def test_observed_law_is_bayes(make, cond):
    """log p(x0 | y) - log p(x0) - log p(y | x0) is the same for all x0; for points, the weights follow."""
    oracle, y, std = make(Gaussian(Cosine())), torch.tensor([0.3, -0.5]).double(), 0.4
    mask = torch.tensor([[True, False], [False, True]])
    given = observed(oracle, mask, y, std)
    if make is points:
        like = torch.exp(-0.5 * ((oracle.points[:, [0, 3]] - y) ** 2).sum(-1) / std**2) * oracle.log_weights.exp()
        torch.testing.assert_close(given.log_weights.exp(), like / like.sum())
        return
    x0 = rand(50, 2, 2, seed=11)
    cond = cond and {"label": torch.ones(50, dtype=torch.long)}
    like = -0.5 * ((x0[:, mask] - y) ** 2).sum(-1) / std**2
    constant = given.log_prob(x0, 0.0, cond) - oracle.log_prob(x0, 0.0, cond) - like
    torch.testing.assert_close(constant, constant[:1].expand(50), rtol=1e-9, atol=1e-9)


def test_an_exact_observation_holds_at_every_level():
    oracle = full(Gaussian(Cosine()))
    mask = torch.tensor([[True, True], [False, False]])
    given = observed(oracle, mask, torch.tensor([0.3, -0.5]), 0.0)
    x = rand(5, 2, 2, seed=4)
    for t in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            given(x, t).x0[:, 0], torch.tensor([0.3, -0.5]).double().expand(5, 2), rtol=1e-9, atol=1e-9
        )
    # the limit of small observation noise
    near = observed(oracle, mask, torch.tensor([0.3, -0.5]), 1e-6)
    torch.testing.assert_close(near(x, 0.4).x0, given(x, 0.4).x0, rtol=1e-6, atol=1e-6)
    with pytest.raises(Degenerate, match="no density"):
        given.log_prob(x, 0.0)


def test_an_operator_may_be_a_function():
    oracle, y = full(Gaussian(Cosine())), torch.tensor([0.1, 0.2])
    matrix = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).double()
    a, b = observed(oracle, lambda x: x.sum(-1), y, 0.1), observed(oracle, matrix, y, 0.1)
    torch.testing.assert_close(a.components.means, b.components.means)
    with pytest.raises(BadValue, match="linear"):
        observed(oracle, lambda x: x.sum(-1) ** 2, y, 0.1)


# Endpoints


def test_paired_gaussian_is_the_joint_conditional():
    process, t = Arch(), 0.3
    mean, cov = rand(2, 1, 2), spd(4)
    level = process.at(t)
    x, y = rand(5, 1, 2, seed=3), rand(5, 1, 2, seed=4)
    cond = {"y": Condition(y, "endpoint")}
    # the joint law of w = (x0, y, z) and linear maps of it
    big = torch.block_diag(cov, torch.eye(2, dtype=torch.float64))
    mu = torch.cat([mean.flatten(), torch.zeros(2, dtype=torch.float64)])
    eye = torch.eye(2, dtype=torch.float64)
    state = torch.cat([level.data * eye, level.source * eye, level.noise * eye], 1)
    end = torch.cat([0 * eye, eye, 0 * eye], 1)
    for blind in (False, True):
        seen = state if blind else torch.cat([state, end])
        value = x.flatten(1) if blind else torch.cat([x, y], 1).flatten(1)
        w = mu + (value - seen @ mu) @ torch.linalg.solve(seen @ big @ seen.mT, seen @ big)
        said = paired(process, mean, cov, blind=blind)(x, t, cond)
        torch.testing.assert_close(said.x0.flatten(1), w[:, :2], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(said.noise.flatten(1), w[:, 4:], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(said.source.flatten(1), w[:, 2:4], rtol=1e-9, atol=1e-9)
        drift = level.d_data * w[:, :2] + level.d_source * w[:, 2:4] + level.d_noise * w[:, 4:]
        torch.testing.assert_close(said.velocity.flatten(1), drift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("t", [0.4, times(5)])
def test_paired_mixture_obeys_tweedie(blind, t):
    oracle = paired(Arch(), rand(3, 2, 2), spd(3, 4), weights=[1, 2, 3], labels=[0, 1, 1], blind=blind)
    x, y = rand(5, 2, seed=3).requires_grad_(), rand(5, 2, seed=4)
    cond = Conditions({"y": Condition(y, "endpoint"), "label": Condition(torch.tensor([0, 1, 1, 0, 1]), "label")})
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, t, cond).sum(), x)
    torch.testing.assert_close(oracle(x, t, cond).score, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [Bridge(), Interpolant(), Interpolant("trig", gamma="brownian"), Residual()])
@pytest.mark.parametrize("blind", [False, True])
def test_paired_reaches_both_ends_of_every_endpoint_process(process, blind):
    oracle = paired(process, rand(2, 2), spd(4), blind=blind)
    x, y = rand(5, 2, seed=3), rand(5, 2, seed=4)
    for t in (0.0, 0.5, 1.0):
        said = oracle(x, t, {"y": Condition(y, "endpoint")})
        level = said.level
        back = level.data * said.x0 + level.source * said.source + level.noise * said.noise
        if blind or level.noise > 0.0:  # else x_t says what y already has said
            torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
        assert torch.isfinite(said.x0).all() and torch.isfinite(said.noise).all()
        if level.data == 1.0 and level.noise == 0.0:
            torch.testing.assert_close(said.x0, x - level.source * said.source)


def test_paired_draws_agree_with_given():
    oracle = paired(Arch(), rand(3, 2, 2), spd(3, 4), weights=[1, 2, 3])
    x0, y = oracle.sample(60000, 0, dtype=torch.float64)
    parts, log_w = oracle.given(y)
    predicted = (log_w.exp()[..., None] * parts.means).sum(1)
    # E[(x0 - E[x0|y]) f(y)] = 0
    for f in (torch.ones(60000).double(), y[:, 0], torch.sin(y[:, 1])):
        assert float((((x0 - predicted) * f[:, None]).mean(0)).abs().max()) < 0.05


def test_an_independent_endpoint_only_shifts():
    oracle, x, y = full(Arch()), rand(5, 2, 2), rand(5, 2, 2, seed=4)
    cond = {"y": Condition(y, "endpoint")}
    level = oracle.process.at(0.3)

    class Twin(Arch):
        def curves(self, t):
            a, _, s, da, _, ds = super().curves(t)
            return a, 0 * t, s, da, 0 * t, ds

        has_source = False

    torch.testing.assert_close(oracle(x, 0.3, cond).x0, full(Twin())(x - level.source * y, 0.3).x0)
    with pytest.raises(BadValue, match="kind 'endpoint'"):
        oracle(x, 0.3)


# Transforms, dtypes, devices


@pytest.mark.parametrize("make", [full, diagonal, points])
def test_forward_mode_vmap_and_dtype(make):
    oracle, x = make(Gaussian(Cosine())), rand(4, 2, 2)
    v = rand(4, 2, 2, seed=7)
    t = torch.full((4,), 0.4, dtype=torch.float64)
    _, along = torch.func.jvp(lambda x, t: oracle(x, t).velocity, (x, t), (v, torch.ones_like(t)))
    h = 1e-5
    difference = (oracle(x + h * v, t + h).velocity - oracle(x - h * v, t - h).velocity) / (2 * h)
    torch.testing.assert_close(along, difference, rtol=1e-6, atol=1e-7)
    rows = torch.func.vmap(lambda row: oracle(row[None], 0.4).x0[0])(x)
    torch.testing.assert_close(rows, oracle(x, 0.4).x0)
    # Cov[x0|x_t] = (noise^2 / data) dE[x0]/dx_t
    jac = torch.func.vmap(torch.func.jacrev(lambda row: oracle(row[None], 0.4).x0.flatten()))(x).reshape(4, 4, 4)
    level = oracle.process.at(0.4)
    torch.testing.assert_close(oracle.posterior_cov(x, 0.4), level.noise**2 / level.data * jac, rtol=1e-8, atol=1e-10)
    assert oracle(x.float(), 0.4).x0.dtype == torch.float32
    torch.testing.assert_close(oracle(x.float(), 0.4).x0, oracle(x, 0.4).x0.float(), rtol=1e-5, atol=1e-6)


# Refusals


def test_bad_input_is_refused():
    process = Gaussian(Cosine())
    with pytest.raises(BadValue, match="covs must be symmetric"):
        gaussian(process, [0.0, 0.0], torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(BadValue, match="positive semi-definite"):
        gaussian(process, [0.0, 0.0], torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(BadValue, match="use oracles"):
        mixture(process, [[0.0], [1.0]], stds=0.0)
    with pytest.raises(BadValue, match="either covs= or stds="):
        mixture(process, [[0.0], [1.0]])
    with pytest.raises(BadValue, match="weights"):
        mixture(process, [[0.0], [1.0]], stds=1.0, weights=[1.0, -1.0])
    with pytest.raises(BadType, match="integers"):
        mixture(process, [[0.0], [1.0]], stds=1.0, labels=[0.0, 1.0])
    with pytest.raises(BadValue, match=r"state of shape \(2, 3\)"):
        gaussian(process, [0.0, 0.0], std=1.0)(torch.zeros(2, 3), 0.5)
    with pytest.raises(BadValue, match="without classes"):
        gaussian(process, [0.0], std=1.0)(torch.zeros(2, 1), 0.5, {"label": torch.tensor([0, 0])})
    with pytest.raises(Incompatible, match="empirical"):
        gaussian(Gaussian(Cosine(), StudentT(3.0)), [0.0], std=1.0)
    with pytest.raises(Incompatible, match="has no endpoint"):
        paired(process, rand(2, 2), spd(4))
    with pytest.raises(Degenerate, match="no density"):
        points(process).log_prob(rand(2, 2, 2), 0.0)
