"""Token solvers against exact chains over enumerated laws."""

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch

from condiff.errors import BadValue, Degenerate, Incompatible
from condiff.guidance import Free
from condiff.process import Cosine, Gaussian
from condiff.process.categorical import Absorbing, MaskAndUniform, UniformTokens
from condiff.process.keep import CosineKeep, Geometric, LinearKeep, LogLinear
from condiff.process.oracles import gaussian, tokens
from condiff.process.token_prediction import TokenPrediction
from condiff.sampling import (
    RelaxedAncestral,
    TauLeaping,
    TokenAncestral,
    TokenFilter,
    Unmask,
    infill,
    sample,
    trajectory,
)
from condiff.sampling.solvers.tokens import draw
from condiff.token_denoiser import TokenDenoiser

BOTH = MaskAndUniform(2, LogLinear(), LinearKeep(end=0.7))
PROCESSES = [Absorbing(2), Absorbing(2, CosineKeep()), UniformTokens(2, LogLinear(eps=1e-3)), BOTH]


def law(vocab=2, length=3, seed=0):
    probs = torch.rand((vocab,) * length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return probs / probs.sum()


def chi_square(seen, expected):
    """p-value of counts against expected counts (pooled where the expectation is below 5)."""
    small = expected < 5
    if small.any():
        seen = torch.cat([seen[~small], seen[small].sum()[None]])
        expected = torch.cat([expected[~small], expected[small].sum()[None]])
        seen, expected = seen[expected > 0], expected[expected > 0]
    statistic = ((seen - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2).double(), statistic / 2))


def ancestral_kernel(process, prediction, t, s):
    return process.posterior(prediction, s).exp()


def leaping_kernel(process, prediction, t, s):
    rates = process.reverse_rates(prediction)
    total = rates.sum(-1, keepdim=True)
    leave = ((t.t - s.t) * total).clamp(max=1.0)
    if s.t == 0.0:
        leave = torch.where(prediction.masked[..., None], 1.0, leave)
    here = torch.nn.functional.one_hot(prediction.x_t, process.vocab + 1)
    return torch.where(total > 0, leave * rates / total, 0.0) + (1 - leave) * here


def exact_chain(oracle, grid, kernel):
    """The law of the sampler's result: all states, all transitions; (V^L,)."""
    process, length = oracle.process, oracle.shape[0]
    ids = range(process.vocab + 1) if process.masking else range(process.vocab)
    states = torch.tensor(list(itertools.product(ids, repeat=length)))
    levels = process.levels(torch.tensor(grid, dtype=torch.float64))
    p = torch.zeros(len(states), dtype=torch.float64)
    if process.masking:
        p[-1] = 1.0
    else:
        p[:] = 1.0 / len(states)
    for t, s in itertools.pairwise(levels):
        live = p > 0
        step = kernel(process, oracle(states[live], t), t, s)  # (N, L, V + 1)
        to = math.prod(step[:, i][:, states[:, i]] for i in range(length))
        torch.testing.assert_close(to.sum(-1), torch.ones(int(live.sum())).double())
        p = p[live] @ to
    clean = (states < process.vocab).all(-1)
    torch.testing.assert_close(p[clean].sum(), torch.tensor(1.0).double())
    return p[clean]


def counts(oracle, x):
    return torch.bincount(oracle.index(x), minlength=oracle.process.vocab ** oracle.shape[0]).double()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("solver", "kernel"), [(TokenAncestral(), ancestral_kernel), (TauLeaping(), leaping_kernel)])
def test_samples_follow_the_exact_chain(process, solver, kernel):
    oracle, n, grid = tokens(process, law()), 20000, [1.0, 0.7, 0.3, 0.0]
    x = sample(oracle, solver=solver, grid=grid, num=n, seed=0)
    expected = exact_chain(oracle, grid, kernel)
    assert chi_square(counts(oracle, x), n * expected) > 0.01
    assert chi_square(counts(oracle, x), n * law().flatten()) < 1e-3  # three steps are visibly not exact


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kernel", [ancestral_kernel, leaping_kernel])
def test_the_chain_converges_at_first_order(process, kernel):
    oracle = tokens(process, law())
    errors = []
    for n in (16, 32, 64):
        grid = torch.linspace(1, 0, n + 1, dtype=torch.float64).tolist()
        errors.append(float((exact_chain(oracle, grid, kernel) - law().flatten()).abs().sum()) / 2)
    assert errors[2] < 0.03
    assert 0.95 < math.log2(errors[1] / errors[2]) < 1.05


@pytest.mark.parametrize("order", ["random", "left", (2, 0, 1), "entropy", "margin"])
def test_one_at_a_time_is_exact_in_any_order(order):
    oracle, n = tokens(Absorbing(2), law()), 20000
    x = sample(oracle, solver=Unmask(order=order), steps=3, num=n, seed=1)
    assert chi_square(counts(oracle, x), n * law().flatten()) > 0.01


@pytest.mark.parametrize("order", ["random", "confidence", "left", (3, 1, 0, 2, 4)])
@pytest.mark.parametrize(
    ("steps", "per_step", "expected"), [(2, None, [3, 2]), (5, None, [1] * 5), (3, 2, [2, 2, 1]), (9, 1, [1] * 5)]
)
def test_counts_per_step(order, steps, per_step, expected):
    oracle = tokens(Absorbing(2), law(2, 5))
    run = list(
        trajectory(oracle, torch.full((4, 5), 2), solver=Unmask(order=order, per_step=per_step), steps=steps, rng=0)
    )
    revealed = [(s.x_t == 2).sum(-1) - (s.x_s == 2).sum(-1) for s in run]
    assert [r.tolist() for r in revealed if r.any()] == [[e] * 4 for e in expected]
    if order == "left":
        assert (run[0].x_s[:, : expected[0]] < 2).all()
    if isinstance(order, tuple):
        assert (run[0].x_s[:, list(order[: expected[0]])] < 2).all()


def test_confidence_reveals_what_is_surest():
    probs = torch.zeros(2, 2, 2)
    probs[:, 1, :] = torch.tensor([[0.5, 0.1], [0.3, 0.1]])  # the middle token is sure
    oracle = tokens(Absorbing(2), probs)
    for order in ("confidence", "margin", "entropy"):
        step = next(trajectory(oracle, torch.full((20, 3), 2), solver=Unmask(order=order), steps=3, rng=0))
        assert (step.x_s == torch.tensor([2, 1, 2])).all()


# Given tokens, seeds, reuse


@pytest.mark.parametrize("solver", [TokenAncestral(), TauLeaping(), Unmask()])
def test_given_tokens_come_back_and_condition_the_rest(solver):
    oracle, n = tokens(Absorbing(2), law()), 8000
    given = torch.tensor([0, 1, 0]).expand(n, 3)
    known = torch.tensor([False, True, False]).expand(n, 3)
    start = infill(oracle.process, given, known)
    assert (start[:, 1] == 1).all() and (start[:, [0, 2]] == 2).all()
    x = sample(oracle, solver=solver, steps=128, initial=start, held=known, seed=0)
    assert (x[:, 1] == 1).all()
    inner = law()[:, 1] / law()[:, 1].sum()
    seen = torch.bincount(2 * x[:, 0] + x[:, 2], minlength=4) / n
    torch.testing.assert_close(seen.double(), inner.flatten(), rtol=0, atol=0.03)


def test_given_tokens_of_a_uniform_process_sit_at_time_zero():
    oracle, n = tokens(UniformTokens(2), law()), 8000
    given = torch.tensor([0, 1, 0]).expand(n, 3)
    known = torch.tensor([False, True, False]).expand(n, 3)
    grid = torch.linspace(1, 0, 65, dtype=torch.float64)[:, None, None] * ~known
    x = sample(
        oracle, solver=TokenAncestral(), grid=grid, initial=infill(oracle.process, given, known, 1), held=known, seed=0
    )
    assert (x[:, 1] == 1).all()
    inner = law()[:, 1] / law()[:, 1].sum()
    seen = torch.bincount(2 * x[:, 0] + x[:, 2], minlength=4) / n
    torch.testing.assert_close(seen.double(), inner.flatten(), rtol=0, atol=0.03)


SOLVERS = [TokenAncestral(), TauLeaping(), Unmask(), Unmask(order="confidence"), RelaxedAncestral()]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sequence_depends_on_its_own_seed_only(solver):
    oracle = Soft(law(2, 4))
    whole = sample(oracle, solver=solver, steps=6, seeds=[3, 4, 5])
    alone = sample(oracle, solver=solver, steps=6, seeds=[4])
    assert torch.equal(whole[1:2], alone)
    assert not torch.equal(
        sample(oracle, solver=solver, steps=6, seeds=range(20)),
        sample(oracle, solver=solver, steps=6, seeds=range(20, 40)),
    )


class Counting:
    """An oracle that counts the rows it is asked about."""

    def __init__(self, oracle, time_free=True):
        self.oracle, self.process, self.shape, self.kinds = oracle, oracle.process, oracle.shape, oracle.kinds
        self.time_free, self.rows = time_free, 0

    def __call__(self, x, t, cond=None):
        self.rows += len(x)
        return self.oracle(x, t, cond)


@pytest.mark.parametrize("solver", [TokenAncestral, TauLeaping, Unmask])
@pytest.mark.parametrize("filtered", [TokenFilter(), TokenFilter(temperature=0.7, top_p=0.9)])
def test_reuse_changes_no_token_and_counts_each_sequence(solver, filtered):
    model = Counting(tokens(Absorbing(2), torch.stack([law(2, 4), law(2, 4, seed=1)]), classes=[0.5, 0.5]))
    cond = {"label": torch.arange(32) % 2}
    start = model.process.prior().sample(model.process.at(1.0), (32, 4), None)
    start[5] = torch.tensor([0, 1, 1, 0])  # complete from the beginning
    options = {"grid": torch.linspace(1, 0, 13), "rng": range(32), "cond": cond}
    plain = list(trajectory(model, start, solver=solver(filter=filtered, reuse=False), **options))
    every, model.rows = model.rows, 0
    reused = list(trajectory(model, start, solver=solver(filter=filtered), **options))
    assert all(torch.equal(a.x_s, b.x_s) for a, b in zip(plain, reused, strict=True))
    nfe = reused[-1].state.extra["nfe"]
    assert every == 12 * 32 and model.rows == int(nfe.sum()) and int(nfe[5]) == 0
    assert (nfe <= 4).all()  # at most once per token
    changed = sum((a.x_t != a.x_s).any(-1).long() for a in plain)
    # one evaluation before the first change and one after every change but the last: as many as changes
    assert torch.equal(nfe, changed)
    assert reused[-1].nfe <= 12 and int(plain[-1].state.extra["nfe"][0]) == 12


@dataclass(frozen=True, kw_only=True)
class CountingFilter(TokenFilter):
    """Counts the rows that it is asked to filter."""

    rows: list = field(default_factory=list, compare=False)

    def __call__(self, prediction):
        self.rows.append(len(prediction.x_t))
        return super().__call__(prediction)


@pytest.mark.parametrize("solver", [TokenAncestral, TauLeaping, Unmask])
def test_what_is_reused_is_filtered_once_and_said_as_if_anew(solver):
    """Sorting a vocabulary at each step would cost what the reuse saves; a finished row says its tokens."""
    model, kept = tokens(Absorbing(3), law(3, 4)), CountingFilter(top_p=0.9)
    start, options = torch.full((16, 4), 3), {"grid": torch.linspace(1, 0, 13), "rng": range(16)}
    start[5] = torch.tensor([0, 1, 1, 0])
    plain = list(trajectory(model, start, solver=solver(filter=TokenFilter(top_p=0.9), reuse=False), **options))
    reused = list(trajectory(model, start, solver=solver(filter=kept), **options))
    assert sum(kept.rows) == int(reused[-1].state.extra["nfe"].sum()) < 12 * 16
    for a, b in zip(plain, reused, strict=True):
        torch.testing.assert_close(b.prediction.log_probs, a.prediction.log_probs, rtol=1e-12, atol=1e-12)
        assert torch.equal(b.prediction.masked, a.prediction.masked)


def test_guidance_of_one_scale_is_reused():
    both = tokens(Absorbing(2), torch.stack([law(2, 4), law(2, 4, seed=1)]), classes=[0.5, 0.5])
    model, start, cond = Counting(both), torch.full((20, 4), 2), {"label": torch.arange(20) % 2}
    options = {"cond": cond, "steps": 30, "rng": range(20)}
    reused = list(trajectory(Free(model, scale=2.0), start, solver=TokenAncestral(), **options))
    assert model.rows == 2 * int(reused[-1].state.extra["nfe"].sum()) < 2 * 20 * 5
    plain = list(trajectory(Free(model, scale=2.0), start, solver=TokenAncestral(reuse=False), **options))
    assert torch.equal(reused[-1].x_s, plain[-1].x_s)
    for changing in ({"scale": lambda level: 1.0 + level.t}, {"scale": 2.0, "interval": (0.2, 0.8)}):
        assert not Free(model, **changing).time_free
    assert not Free(Counting(both, time_free=False), scale=2.0).time_free


def test_expected_evaluations_follow_the_formula():
    """RADD: n (1 - (1 - 1/n)^L) for log-linear noise."""
    oracle, n = tokens(Absorbing(2), law(2, 6)), 8
    step = list(trajectory(oracle, torch.full((4000, 6), 2), solver=TokenAncestral(), steps=n, rng=0))[-1]
    expected = n * (1 - (1 - 1 / n) ** 6)
    assert float(step.state.extra["nfe"].double().mean()) == pytest.approx(expected, rel=0.01)


def test_reuse_is_off_where_it_would_be_wrong():
    told = Counting(tokens(Absorbing(2), law()), time_free=False)
    sample(told, solver=TokenAncestral(), steps=4, num=3, seed=0)
    assert told.rows == 12
    with pytest.raises(Incompatible, match="time_free"):
        sample(told, solver=TokenAncestral(reuse=True), steps=4, num=3, seed=0)
    uniform = Counting(tokens(UniformTokens(2), law()))
    sample(uniform, solver=TokenAncestral(), steps=4, num=3, seed=0)
    assert uniform.rows == 12
    uniform.time_free = True  # nothing is ever masked: nothing would be evaluated
    with pytest.raises(Incompatible, match="absorbing"):
        sample(uniform, solver=TokenAncestral(reuse=True), steps=4, num=3, seed=0)


def test_ancestral_and_leaping_agree_for_log_linear_noise_only():
    grid = [1.0, 0.8, 0.3, 0.1, 0.0]
    for keep, same in ((LogLinear(), True), (Geometric(high=5.0), False)):
        oracle = tokens(Absorbing(2, keep), law())
        a, b = (exact_chain(oracle, grid, kernel) for kernel in (ancestral_kernel, leaping_kernel))
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12) == same


# Filters and draws


def test_draws_are_exact_and_never_impossible():
    p = torch.tensor([0.0, 1e-3, 0.0, 0.999 - 1e-3, 1e-3, 0.0], dtype=torch.float64)
    u = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    seen = torch.bincount(draw(p.log().expand(100000, 6), u), minlength=6).double() / 100000
    torch.testing.assert_close(seen, p / p.sum(), rtol=0, atol=2e-5)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw(p.log().expand(2, 6), ends).tolist() == [1, 4]


def test_filters():
    p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    prediction = TokenPrediction(torch.tensor([[4, 2]]), Absorbing(4).at(0.5), p.log().expand(1, 2, 4))

    def kept(**options):
        out = TokenFilter(**options)(prediction).probs
        assert out[0, 1].tolist() == [0, 0, 1, 0]  # visible tokens stay what they are
        return out[0, 0]

    torch.testing.assert_close(kept(temperature=0.5), p**2 / (p**2).sum())
    torch.testing.assert_close(kept(temperature=0.0), torch.tensor([1.0, 0, 0, 0]).double(), check_dtype=False)
    torch.testing.assert_close(kept(top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0]).double())
    torch.testing.assert_close(kept(top_p=0.75), torch.tensor([2 / 3, 1 / 3, 0, 0]).double())
    torch.testing.assert_close(kept(top_p=0.76), torch.tensor([0.5, 0.25, 0.15, 0]).double() / 0.9)
    torch.testing.assert_close(kept(top_p=1e-9), torch.tensor([1.0, 0, 0, 0]).double())
    torch.testing.assert_close(kept(top_p=1.0), p)
    for solver in (TokenAncestral, TauLeaping, Unmask):
        x = sample(tokens(Absorbing(2), law()), solver=solver(filter=TokenFilter(top_k=1)), steps=7, num=50, seed=0)
        assert (x < 2).all()


# Networks and gradients


class Soft:
    """The exact conditionals as a function of soft one-hots: p(v | visible) by a softmax over all sequences."""

    shape, kinds, time_free = (4,), {}, True

    def __init__(self, probs, tilt=None):
        self.oracle = tokens(Absorbing(probs.shape[0]), probs)
        self.process, self.tilt = self.oracle.process, tilt

    def __call__(self, x_t, t, cond=None):
        vocab, x = self.process.vocab, x_t
        x = x if x.is_floating_point() else torch.nn.functional.one_hot(x, vocab + 1).double()
        one_hot = torch.nn.functional.one_hot(self.oracle.rows, vocab).to(x.dtype)
        agree = torch.einsum("blv,nlv->bnl", x[..., :-1], one_hot) + x[..., -1][:, None]
        log_w = self.oracle.log_weights if self.tilt is None else self.oracle.log_weights + self.tilt
        r = (log_w + agree.clamp_min(1e-30).log().sum(-1)).softmax(-1)
        marginals = torch.einsum("bn,nlv->blv", r, one_hot.double()).clamp_min(1e-30)
        return TokenPrediction(x_t, self.process.at(t), marginals.log())


def test_straight_through_follows_the_hard_law_and_carries_gradients():
    probs = law(2, 4)
    x = sample(Soft(probs), solver=RelaxedAncestral(tau=0.5), grid=[1.0, 0.6, 0.3, 0.0], num=8000, seed=0)
    assert ((x == 0) | (x == 1)).all() and (x.sum(-1) == 1).all() and (x[..., -1] == 0).all()
    oracle = tokens(Absorbing(2), probs)
    expected = exact_chain(oracle, [1.0, 0.6, 0.3, 0.0], ancestral_kernel)
    assert chi_square(counts(oracle, x.argmax(-1)), 8000 * expected) > 0.01
    tilt = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    for through in (True, False):
        solver = RelaxedAncestral(tau=1.0, straight_through=through)
        x = sample(Soft(probs, tilt), solver=solver, steps=6, num=256, seed=0, grad=True)
        torch.testing.assert_close(x.sum(-1), torch.ones(256, 4), rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(x[..., 1].sum(), tilt)
        ones = oracle.rows.sum(-1)
        assert torch.isfinite(gradient).all()
        assert gradient[ones == 4].sum() > 0 > gradient[ones == 0].sum()  # more weight on 1111 makes more ones


def test_a_small_tau_is_the_hard_step():
    hard = sample(Soft(law(2, 4)), solver=RelaxedAncestral(tau=1e-8, straight_through=True), steps=5, num=50, seed=0)
    soft = sample(Soft(law(2, 4)), solver=RelaxedAncestral(tau=1e-8, straight_through=False), steps=5, num=50, seed=0)
    torch.testing.assert_close(hard, soft, rtol=0, atol=1e-6)


class Chain(torch.nn.Module):
    condition_kinds = {"label": "label"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(2, 7, 6))

    def forward(self, x, time, cond):
        y = cond["label"].value if "label" in cond else torch.zeros(len(x), dtype=torch.long)
        return self.table[y[:, None], x.roll(1, 1)]


@pytest.mark.parametrize("solver", [TokenAncestral(), TauLeaping(), Unmask()])
def test_a_network_samples_clean_tokens(solver):
    model = TokenDenoiser(Chain(), Absorbing(6), shape=(9,), time_free=True)
    x = sample(model, solver=solver, steps=12, cond={"label": torch.arange(10) % 2}, seed=0)
    assert x.shape == (10, 9) and x.dtype == torch.long and ((x >= 0) & (x < 6)).all()


# Refusals


def test_bad_combinations_are_refused():
    oracle = tokens(Absorbing(2), law())
    with pytest.raises(Incompatible, match="categorical process"):
        sample(gaussian(Gaussian(Cosine()), [0.0], std=1.0), solver=TokenAncestral(), steps=3, num=1, seed=0)
    with pytest.raises(Incompatible, match="must not go up"):
        sample(oracle, solver=TokenAncestral(), grid=[1.0, 0.5, 0.7, 0.0], num=1, seed=0)
    with pytest.raises(Incompatible, match="needs Absorbing"):
        sample(tokens(UniformTokens(2), law()), solver=Unmask(), steps=3, num=1, seed=0)
    with pytest.raises(Degenerate, match=r"rates .* are infinite"):
        sample(tokens(UniformTokens(2), law()), solver=TauLeaping(), steps=3, num=1, seed=0)
    with pytest.raises(BadValue, match="more than 2 steps of 1"):
        sample(oracle, solver=Unmask(per_step=1), steps=2, num=1, seed=0)
    with pytest.raises(BadValue, match="give initial="):
        sample(oracle, solver=TokenAncestral(), grid=[0.5, 0.0], num=1, seed=0)
    with pytest.raises(BadValue, match="unknown order 'confident'"):
        Unmask(order="confident")
    with pytest.raises(BadValue, match="each, got"):
        sample(oracle, solver=Unmask(order=(0, 1)), steps=3, num=1, seed=0)
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(BadValue):
            TokenFilter(**options)
    with pytest.raises(BadValue, match="exceeds the vocabulary"):
        sample(oracle, solver=TokenAncestral(filter=TokenFilter(top_k=9)), steps=3, num=1, seed=0)
    with pytest.raises(BadValue, match="clean tokens"):
        infill(oracle.process, torch.tensor([[2, 0]]), torch.tensor([[True, False]]))
    with pytest.raises(BadValue, match="soft one-hots"):
        sample(Soft(law(2, 4)), solver=TokenAncestral(), steps=3, initial=torch.ones(2, 4, 3) / 3, seed=0)
    with pytest.raises(BadValue, match="known must be booleans"):
        infill(oracle.process, torch.tensor([[1, 0]]), torch.tensor([[1, 0]]))
