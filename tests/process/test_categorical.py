"""Categorical processes against enumeration: kernels, posteriors, ratios, rates."""

import itertools
import math
from typing import ClassVar

import pytest
import torch

from condiff.conditions import Condition, Conditions
from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.process.categorical import Absorbing, MaskAndUniform, UniformTokens
from condiff.process.keep import CosineKeep, Geometric, LinearKeep, LogLinear, RatioKeep
from condiff.process.oracles import tokens
from condiff.process.token_prediction import TokenPrediction, mix_tokens
from condiff.token_denoiser import TokenDenoiser

KEEPS = [LogLinear(), LogLinear(eps=1e-3), CosineKeep(), Geometric(), LinearKeep(start=0.01, end=0.9)]
BOTH = MaskAndUniform(4, LogLinear(), LinearKeep(start=0.1, end=0.8))
PROCESSES = [Absorbing(4), Absorbing(4, Geometric()), UniformTokens(4, LogLinear(eps=0.1)), BOTH, MaskAndUniform(4)]


def law(vocab=3, length=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    probs = torch.rand((vocab,) * length, generator=g, dtype=torch.float64) ** 4
    return probs / probs.sum()


def log_soft(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("keep", [*KEEPS, RatioKeep(top=LinearKeep(start=0.1, end=0.99), bottom=LinearKeep(end=0.95))])
def test_keep_curves(keep):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64).requires_grad_()
    lost = keep.lost(t)
    (slope,) = torch.autograd.grad(lost.sum(), t)
    torch.testing.assert_close(keep.d_lost(t), slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(keep.keep(t), 1 - lost, rtol=1e-9, atol=1e-12)
    assert (slope > 0).all()
    if not isinstance(keep, RatioKeep):
        torch.testing.assert_close(keep.time(lost), t, rtol=1e-6, atol=1e-9)


# Kernels


@pytest.mark.parametrize("process", PROCESSES)
def test_kernels_are_stochastic_and_compose(process):
    levels = process.levels(torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64))
    step = torch.eye(5, dtype=torch.float64)
    for s, t in itertools.pairwise(levels):
        one = process.transition(s, t)
        torch.testing.assert_close(one.sum(-1), torch.ones(5).double(), rtol=1e-12, atol=1e-12)
        assert (one >= 0).all()
        step = step @ one
        torch.testing.assert_close(process.transition(levels[0], t), step, rtol=1e-12, atol=1e-12)
    x = torch.arange(5)[None]
    like = process.log_likelihood(x, levels[2]).exp()[0]  # (x_t, x0)
    torch.testing.assert_close(like, process.transition(levels[0], levels[2])[:-1].mT, rtol=1e-12, atol=1e-12)


def test_default_shares_are_those_of_vq_diffusion():
    process = MaskAndUniform(1024)
    level = process.at(1e-300)
    assert (1 - level.mask) * level.retain == pytest.approx(0.99999, abs=1e-12)
    assert level.mask == pytest.approx(9e-6, rel=1e-9)
    level = process.at(1.0)
    assert (1 - level.mask) * level.retain == pytest.approx(9e-6, rel=1e-9)
    assert level.mask == pytest.approx(0.99999, abs=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("t", [0.3, 0.0, 1.0, "rows", "positions"])
def test_forward_has_the_marginals_of_the_kernel(process, t):
    n = 40000
    x0 = torch.arange(4).repeat(n, 1)
    if t == "rows":
        t = torch.tensor([0.2, 0.8], dtype=torch.float64).repeat(n // 2)
    elif t == "positions":
        t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64).expand(n, 4)
    said = process.forward(x0, t, rng=0)
    assert torch.equal(said.tokens, x0)
    for i in range(4):
        for first in (0, 1):  # even and odd rows
            time = t if isinstance(t, float) else float(t[first] if t.ndim == 1 else t[first, i])
            expected = process.transition(process.at(0.0), process.at(time))[i]
            seen = torch.bincount(said.x_t[first::2, i], minlength=5).double() / (n // 2)
            torch.testing.assert_close(seen, expected, rtol=0, atol=0.013)


def test_one_draw_loses_tokens_in_one_order():
    x0, noise = torch.arange(4).repeat(100, 1), torch.rand(100, 4, dtype=torch.float64)
    masked = [Absorbing(4).forward(x0, t, noise=noise).masked for t in (0.0, 0.3, 0.6, 1.0)]
    assert all(bool((a <= b).all()) for a, b in itertools.pairwise(masked))
    assert not masked[0].any() and masked[-1].all()


def test_rows_with_their_own_seed_do_not_depend_on_the_batch():
    x0 = torch.arange(4).repeat(3, 1)
    whole = BOTH.forward(x0, 0.5, rng=[3, 4, 5]).x_t
    assert torch.equal(whole[1:2], BOTH.forward(x0[:1], 0.5, rng=[4]).x_t)


def test_exact_counts():
    x0 = torch.randint(4, (5000, 6), generator=torch.Generator().manual_seed(0))
    k = torch.arange(5000) % 7
    said = Absorbing(4).mask_count(x0, k, rng=0)
    assert torch.equal(said.masked.sum(-1), k)
    assert torch.equal(said.x_t[~said.masked], x0[~said.masked])
    torch.testing.assert_close(said.level.mask, k.double() / 6, rtol=1e-12, atol=0)
    share = said.masked[k == 3].double().mean(0)
    torch.testing.assert_close(share, torch.full((6,), 0.5).double(), rtol=0, atol=0.06)


# Posteriors


def brute_force(process, x, p, s, t):
    """q(x_s | x_t = x) for one token by Bayes over (x0, x_s), p = p(x0 | x_t)."""
    clean, zero = process.transition(process.at(0.0), s), process.at(0.0)
    step, whole = process.transition(s, t), process.transition(zero, t)
    out = torch.zeros(process.vocab + 1, dtype=torch.float64)
    for v in range(process.vocab):
        if p[v] > 0:
            out += p[v] * step[:, x] * clean[v] / whole[v, x]
    return out


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.2, 0.9), (0.3, 0.31), (0.5, 1.0), (0.0, 1.0)])
def test_posterior_is_bayes(process, s, t):
    s, t = process.at(s), process.at(t)
    x = torch.arange(5) if process.masking is not None else torch.arange(4)
    prediction = TokenPrediction(x[None], t, log_soft(1, len(x), 4))
    out = process.posterior(prediction, s)[0].exp()
    torch.testing.assert_close(out.sum(-1), torch.ones(len(x)).double(), rtol=1e-12, atol=1e-12)
    for i in range(len(x)):
        if float(process.transition(process.at(0.0), t)[:-1, i].sum()) == 0.0:
            continue  # a visible token at a time when none is left
        expected = brute_force(process, i, prediction.probs[0, i], s, t)
        torch.testing.assert_close(out[i], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_posteriors_compose(process):
    """sum over x_u of q(x_s | x_u) q(x_u | x_t) = q(x_s | x_t), all given x0."""
    s, u, t = (process.at(time) for time in (0.2, 0.5, 0.8))
    states = range(5) if process.masking is not None else range(4)
    for v, x in itertools.product(range(4), states):
        if process.visible_is_clean and x not in (v, 4):
            continue

        def given(x, level, to, v=v):
            prediction = TokenPrediction(torch.tensor([[x]]), level, torch.eye(4)[v].log().double()[None, None])
            return process.posterior(prediction, to)[0, 0].exp()

        middle = given(x, t, u)
        through = sum(middle[w] * given(w, u, s) for w in range(5) if middle[w] > 0)
        torch.testing.assert_close(through, given(x, t, s), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_posterior_at_zero_is_the_prediction_with_a_time_per_position(process):
    x = torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4]]) if process.masking else torch.tensor([[0, 1, 2, 3]] * 2)
    t = torch.tensor([[0.5, 0.0, 0.7, 0.2], [0.5, 0.6, 0.7, 0.2]], dtype=torch.float64)
    prediction = TokenPrediction(x, process.at(t), log_soft(2, 4, 4))
    out = process.posterior(prediction, torch.zeros_like(t)).exp()
    expected = prediction.probs.clone()
    expected[0, 1] = torch.eye(4)[1].double()  # a position at t = 0 is data, whatever the network says
    torch.testing.assert_close(out[..., :4], expected, rtol=1e-12, atol=1e-12)
    assert (out[..., 4] == 0).all()


@pytest.mark.parametrize("process", PROCESSES)
def test_gradients_are_finite(process):
    x = torch.tensor([[0, 1, 2, 4]]) if process.masking else torch.tensor([[0, 1, 2, 3]])
    logits = log_soft(1, 4, 4).requires_grad_()
    prediction = TokenPrediction(x, process.at(0.5), logits)
    for s in (0.0, 0.3):
        (gradient,) = torch.autograd.grad(
            process.posterior(prediction, s).exp().pow(2).sum(), logits, retain_graph=True
        )
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    (gradient,) = torch.autograd.grad(process.reverse_rates(prediction).pow(2).sum(), logits)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


# Enumerated laws


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("t", [0.6, "rows", "positions"])
def test_the_token_oracle_is_bayes_over_sequences(process, t):
    probs = law(4, 3)
    oracle = tokens(process, probs)
    times = {
        "rows": torch.tensor([0.3, 0.8]).double(),
        "positions": torch.tensor([[0.3, 0.6, 0.9], [0.0, 0.5, 0.7]]).double(),
    }
    t = times.get(t, t)
    x = oracle.process.forward(oracle.sample(2, 1), t, rng=0).x_t
    grid = torch.as_tensor(t, dtype=torch.float64)
    grid = grid.reshape(grid.shape + (1,) * (2 - grid.ndim)).expand(2, 3)
    for b in range(2):
        joint = probs.clone()
        for i in range(3):
            kernel = process.transition(process.at(0.0), process.at(float(grid[b, i])))
            joint *= kernel[:-1, x[b, i]].reshape([4 if d == i else 1 for d in range(3)])
        torch.testing.assert_close(oracle.log_prob(x, t)[b], joint.sum().log(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(oracle.posterior(x, t)[b], (joint / joint.sum()).flatten(), rtol=1e-11, atol=1e-14)
        for i in range(3):
            marginal = joint.sum([d for d in range(3) if d != i]) / joint.sum()
            torch.testing.assert_close(oracle(x, t).probs[b, i], marginal, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "process", [Absorbing(3, Geometric()), UniformTokens(3), MaskAndUniform(3, LogLinear(), LinearKeep(start=0.1))]
)
def test_ratios_are_those_of_the_marginals(process):
    """The concrete score: p_t(y) / p_t(x) with one position changed; RADD's identity for absorbing."""
    oracle, t = tokens(process, law()), 0.6
    for x in ([3, 1, 3, 0], [3, 3, 3, 3], [0, 1, 2, 0]):
        x = torch.tensor([x if process.masking else [v % 3 for v in x]])
        prediction = oracle(x, t)
        said = process.log_ratios(prediction)[0].exp()
        for i, w in itertools.product(range(4), range(4 if process.masking else 3)):
            if isinstance(process, Absorbing) and x[0, i] < 3:
                assert said[i, w].isnan()
                continue  # not determined by p(x0 | x), and not needed
            if w != x[0, i]:
                y = x.clone()
                y[0, i] = w
                try:
                    expected = (oracle.log_prob(y, t) - oracle.log_prob(x, t)).exp()[0]
                except Degenerate:
                    expected = torch.tensor(0.0).double()
                torch.testing.assert_close(said[i, w], expected, rtol=1e-10, atol=1e-14)
        if isinstance(process, Absorbing):
            level = prediction.level
            hidden = prediction.masked[0]
            radd = (1 - level.mask) / level.mask * prediction.probs[0]
            torch.testing.assert_close(said[hidden, :3], radd[hidden], rtol=1e-10, atol=0)


@pytest.mark.parametrize("process", [Absorbing(4, Geometric()), UniformTokens(4), BOTH])
def test_reverse_rates_are_the_derivative_of_the_posterior(process):
    t, h = 0.6, 1e-6
    x = torch.tensor([[0, 4, 2, 4]]) if process.masking else torch.tensor([[0, 1, 2, 3]])
    prediction = TokenPrediction(x, process.at(t), log_soft(1, 4, 4))
    near = process.posterior(prediction, t - h)[0].exp() / h
    rates = process.reverse_rates(prediction)[0]
    away = torch.arange(5) != x[0, :, None]
    torch.testing.assert_close(rates[away], near[away], rtol=1e-4, atol=1e-6)
    assert (rates[~away] == 0).all()


def test_forward_rates_are_the_derivative_of_the_kernel():
    h = 1e-7
    kernel = BOTH.transition(BOTH.at(0.5), BOTH.at(0.5 + h))
    to_mask, shuffle = BOTH.rates(0.5)
    assert float(kernel[0, -1]) / h == pytest.approx(to_mask, rel=1e-5)
    assert float(kernel[0, 1]) / h == pytest.approx(shuffle / 4, rel=1e-5)


def test_the_exact_bound_is_the_negative_log_likelihood():
    """int reveal_rate E sum_masked -log p(x0 | x_t) dt = -log p(x0) with exact conditionals (absorbing)."""
    oracle = tokens(Absorbing(3), law())
    x0 = torch.tensor([[0, 2, 1, 1]])
    nodes = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    total = 0.0
    for hidden in itertools.product([False, True], repeat=4):
        hidden = torch.tensor([hidden])
        said = oracle(torch.where(hidden, 3, x0), 0.5).log_probs.gather(-1, x0[..., None])[..., 0]
        loss, k = -said[hidden].sum(), int(hidden.sum())
        level = oracle.process.at(nodes)
        total += loss * (level.reveal_rate * level.mask**k * (1 - level.mask) ** (4 - k)).mean()
    torch.testing.assert_close(total, -oracle.log_prob(x0, 0.0)[0], rtol=1e-5, atol=0)


def test_absorbing_posteriors_do_not_depend_on_time_and_visible_tokens_are_carried():
    oracle = tokens(Absorbing(3), law())
    x = torch.tensor([[3, 1, 3, 0]])
    said = oracle(x, 0.3).log_probs
    for t in (0.9, 0.0, 1.0):
        torch.testing.assert_close(oracle(x, t).log_probs, said, rtol=1e-12, atol=0)
    assert oracle(x, 0.5).probs[0, 1].tolist() == [0, 1, 0]


def test_given_tokens_and_classes():
    probs = torch.stack([law(seed=0), law(seed=1)])
    oracle = tokens(UniformTokens(3), probs, classes=[0.3, 0.7])
    x, t = torch.tensor([[0, 1, 2, 0], [1, 1, 1, 1]]), 0.5
    for y in (0, 1):
        one = tokens(UniformTokens(3), probs[y])
        cond = {"label": torch.tensor([y, y])}
        torch.testing.assert_close(oracle(x, t, cond).probs, one(x, t).probs, rtol=1e-11, atol=1e-12)
        bayes = math.log([0.3, 0.7][y]) + one.log_prob(x, t) - oracle.log_prob(x, t)
        torch.testing.assert_close(oracle.class_log_prob(x, t)[:, y], bayes, rtol=1e-11, atol=1e-12)
    drop = Conditions({"label": Condition(torch.tensor([0, 0]), "label", keep=torch.tensor([False, False]))})
    torch.testing.assert_close(oracle(x, t, drop).probs, oracle(x, t).probs)
    known = torch.tensor([False, True, False, False])
    given = tokens(UniformTokens(3), probs[0]).given(torch.tensor([0, 2, 0, 0]), known)
    inner = probs[0][:, 2] / probs[0][:, 2].sum()
    torch.testing.assert_close(given.log_weights.exp().reshape(3, 3, 3, 3)[:, 2], inner)
    assert (given.sample(100, 0)[:, 1] == 2).all()


# Predictions and the denoiser


def test_set_and_mix():
    x = torch.tensor([[3, 1]])
    level = Absorbing(3).at(0.5)
    a, b = (TokenPrediction(x, level, log_soft(1, 2, 3, seed=i)) for i in (1, 2))
    guided = mix_tokens([a, b], [-1.0, 2.0])
    expected = (2.0 * b.log_probs[0, 0] - a.log_probs[0, 0]).log_softmax(-1)
    torch.testing.assert_close(guided.log_probs[0, 0], expected)
    assert guided.probs[0, 1].tolist() == [0, 1, 0] and torch.isfinite(guided.entropy).all()
    set_probs = a.set("probs", torch.tensor([[[0.2, 0.0, 0.8], [1, 0, 0]]]).double())
    torch.testing.assert_close(set_probs.probs[0], torch.tensor([[0.2, 0.0, 0.8], [0, 1, 0]]).double())
    assert a.set("tokens", torch.tensor([[2, 0]])).tokens.tolist() == [[2, 1]]
    with pytest.raises(BadValue, match="unknown token prediction 'logits'"):
        a.set("logits", a.probs)


class Linear(torch.nn.Module):
    """Logits linear in the one-hot state, plus the time it is told."""

    condition_kinds: ClassVar = {"label": "label"}

    def __init__(self, outputs=3):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, outputs, dtype=torch.float64))
        self.told = "nothing yet"

    def forward(self, x, time, cond):
        self.told = time
        x = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).double()
        return (x.flip(1) @ self.weight), {"side": 1}


def test_token_denoiser_takes_ids_and_soft_one_hots():
    denoiser = TokenDenoiser(Linear(), Absorbing(3), shape=(5,), time_free=True)
    x = torch.tensor([[3, 1, 3, 0, 2], [3, 3, 3, 3, 3]])
    hard = denoiser(x, 0.5)
    one_hot = torch.nn.functional.one_hot(x, 4).double()
    torch.testing.assert_close(denoiser(one_hot, 0.5).log_probs, hard.log_probs)
    assert denoiser.network.told is None and hard.aux == {"side": 1} and hard.log_probs.dtype == torch.float64
    assert hard.probs[0, 1].tolist() == [0, 1, 0]
    TokenDenoiser(Linear(), UniformTokens(3))(x.clamp(max=2), torch.tensor([0.1, 0.2]))
    half = denoiser((0.9 * one_hot + 0.025).requires_grad_(), 0.5)
    assert half.masked.tolist() == hard.masked.tolist()
    half.log_probs.gather(-1, half.tokens[..., None]).sum().backward()
    assert torch.isfinite(denoiser.network.weight.grad).all()


def test_bad_input_is_refused():
    process, x0 = Absorbing(3), torch.tensor([[0, 1]])
    with pytest.raises(BadValue, match=r"MASK is 3\), got 0 .. 3"):
        process.forward(torch.tensor([[0, 3]]), 0.5)
    with pytest.raises(BadType, match="integer ids"):
        process.forward(torch.zeros(1, 2), 0.5)
    with pytest.raises(BadValue, match="leading dimensions"):
        process.forward(x0, torch.tensor([0.1, 0.2]))
    with pytest.raises(BadValue, match="lie in"):
        process.at(1.5)
    with pytest.raises(BadValue, match="leave MASK out"):
        TokenDenoiser(Linear(4), process)(x0, 0.5)
    with pytest.raises(BadValue, match=r"sequences \(5,\)"):
        TokenDenoiser(Linear(), process, shape=(5,))(x0, 0.5)
    with pytest.raises(BadValue, match="back in time"):
        process.posterior(process.forward(x0, 0.5, rng=0), 0.6)
    with pytest.raises(Incompatible, match="exact count"):
        UniformTokens(3).mask_count(x0, 1)
    with pytest.raises(BadValue, match=r"k must lie in \[0, 2\]"):
        process.mask_count(x0, 3)
    with pytest.raises(BadValue, match="must decrease"):
        RatioKeep(top=LinearKeep(start=0.1), bottom=LinearKeep(start=0.5, end=0.9))
    with pytest.raises(BadValue, match="keeps nothing"):
        RatioKeep(top=LinearKeep(), bottom=LogLinear())
    with pytest.raises(BadValue, match="vocab"):
        Absorbing(1)
    with pytest.raises(BadValue, match="give initial="):
        process.prior().sample(process.at(0.5), (1, 2), None)
    with pytest.raises(Degenerate, match="probability 0"):
        tokens(UniformTokens(3), law())(torch.tensor([[3, 0, 0, 0]]), 0.5)
    with pytest.raises(BadValue, match="probs must be"):
        tokens(process, torch.ones(3, 2))


def test_a_list_of_times_is_a_time_per_row():
    """Levels of tokens and of Gaussian states come from one place, so that both take what the other takes."""
    process = Absorbing(vocab=3)
    assert torch.equal(process.at([0.1, 0.2]).t, torch.tensor([0.1, 0.2], dtype=torch.float64))
    level = process.at(0.3)
    assert process.at(level) is level and isinstance(level.t, float)
