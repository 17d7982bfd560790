"""RADD against enumerated laws and Markov chains, whose conditionals are exact."""

import itertools
import math

import pytest
import torch

from condiff.data import TokenData
from condiff.errors import BadType, BadValue, Incompatible
from condiff.methods import radd
from condiff.methods.experiment import Facts
from condiff.metrics import bits_per_dim, order_bound
from condiff.networks import TokenTransformer
from condiff.process import Absorbing, UniformTokens, oracles
from condiff.process.keep import Geometric, LogLinear
from condiff.process.token_prediction import TokenPrediction
from condiff.sampling import TauLeaping, TokenAncestral, TokenFilter, Unmask, infill, sample, trajectory
from condiff.token_denoiser import TokenDenoiser
from condiff.training import TokenDenoising

V, L = 3, 4


def law(vocab=V, length=L, seed=0):
    probs = torch.rand((vocab,) * length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2
    return probs / probs.sum()


class Wrong:
    """The exact conditionals, bent: still normalised, still functions of the visible tokens only."""

    time_free = True

    def __init__(self, oracle):
        self.oracle, self.process, self.shape = oracle, oracle.process, oracle.shape

    def __call__(self, x_t, t, cond=None):
        said = self.oracle(x_t, t)
        bend = torch.sin(1.0 + torch.arange(self.process.vocab) + (x_t * torch.arange(1, L + 1)).sum(-1)[:, None, None])
        return said.set("log_probs", 0.7 * said.log_probs + bend)


EXACT = oracles.tokens(Absorbing(V), law())
BOTH = pytest.mark.parametrize("denoiser", [EXACT, Wrong(EXACT)], ids=["exact", "wrong"])


def missed(denoiser, x, hidden):
    """``-log c`` of each masked token of one sequence x under each mask (M, L); 0 elsewhere."""
    state = torch.where(hidden, denoiser.process.mask_id, x)
    said = denoiser(state, 0.5).log_probs.gather(-1, x.expand(len(hidden), L)[..., None])[..., 0]
    return torch.where(hidden, -said, 0.0)


def masks():
    return torch.tensor(list(itertools.product([False, True], repeat=L)))


def over_share(denoiser, x, low=0.0, high=1.0, extra=lambda m, count: 0.0):
    """``int (1 / m) E [sum_masked -log c + extra] dm``, by Gauss-Legendre over all masks: polynomials in m, exact."""
    import numpy as np

    hidden = masks()
    total, count = missed(denoiser, x, hidden).sum(-1), hidden.sum(-1)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(40))
    out = torch.zeros((), dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        m = low + (high - low) * (node + 1) / 2
        chance = m**count * (1 - m) ** (L - count)
        out += weight * (high - low) / 2 * (chance * (total + extra(m, count)) / m).sum()
    return out


def over_count(denoiser, x):
    hidden = masks()[1:]
    count = hidden.sum(-1)
    chance = torch.tensor([1.0 / math.comb(L, int(k)) for k in count], dtype=torch.float64) / L
    return (chance * L / count * missed(denoiser, x, hidden).sum(-1)).sum()


def each_order(denoiser, x):
    out = []
    for order in itertools.permutations(range(L)):
        place = torch.tensor(order).argsort()
        hidden = torch.stack([place >= step for step in range(L)])
        out.append(missed(denoiser, x, hidden)[torch.arange(L), torch.tensor(order)].sum())
    return torch.stack(out)


# The identities


@pytest.mark.parametrize("schedule", [LogLinear(eps=1e-3), Geometric()], ids=["log-linear", "geometric"])
def test_the_score_is_a_scalar_times_the_conditional(schedule):
    """p_t(y) / p_t(x) = (1 - mask) / mask p(x0^i = v | visible), by summing the forward kernel over all x0."""
    process = Absorbing(V, schedule)
    oracle, worst = oracles.tokens(process, law()), 0.0
    states = torch.tensor(list(itertools.product(range(V + 1), repeat=L)))
    for t in (0.1, 0.5, 0.9):
        level = process.at(t)
        log_p, ratio = oracle.log_prob(states, level), level.visible / level.mask
        conditional = oracle(states, 0.3).probs  # at another time: it has none
        for i, v in itertools.product(range(L), range(V)):
            masked = states[:, i] == V
            y = states[masked].clone()
            y[:, i] = v
            true = (oracle.log_prob(y, level) - log_p[masked]).exp()
            worst = max(worst, float((ratio * conditional[masked, i, v] / true - 1.0).abs().max()))
        theirs = process.log_ratios(oracle(states, level))[..., :V].exp()
        torch.testing.assert_close(theirs[states == V], (ratio * conditional)[states == V], rtol=1e-10, atol=0)
    assert worst < 1e-10


@BOTH
def test_the_losses_are_one_number(denoiser):
    for x in EXACT.sample(5, 0):
        orders = each_order(denoiser, x)
        torch.testing.assert_close(over_share(denoiser, x), orders.mean(), rtol=0, atol=1e-8)
        torch.testing.assert_close(over_count(denoiser, x), orders.mean(), rtol=0, atol=1e-8)
        nll = -EXACT.log_weights[EXACT.index(x[None])][0]
        if denoiser is EXACT:
            torch.testing.assert_close(orders, nll.expand(24), rtol=0, atol=1e-8)
        else:
            assert orders.std() > 1e-2
    # on the average over the data no bound is below the entropy
    every, p = EXACT.rows, EXACT.log_weights.exp()
    bound = sum(w * each_order(denoiser, x).mean() for w, x in zip(p, every, strict=True))
    entropy = -(p * EXACT.log_weights).sum()
    assert (abs(bound - entropy) < 1e-8) if denoiser is EXACT else (bound > entropy + 1e-3)


def integrand(objective, process, x, u, denoiser):
    """The objective's expectation over masks at one uniform number: its own corruption, every pattern weighted."""
    hidden = masks()
    level_truth, weight = objective.corrupt(process, x[None], torch.tensor([u], dtype=torch.float64), 0)
    level = level_truth.level
    state = torch.where(hidden, process.mask_id, x)
    truth = TokenPrediction(state, process.at(float(torch.as_tensor(level.t))), tokens=x.expand(len(hidden), L))
    m = float(torch.as_tensor(truth.level.mask))
    count = hidden.sum(-1)
    chance = m**count * (1 - m) ** (L - count)
    value = objective.value(denoiser(state, truth.level), truth, weight.expand(len(hidden)).double())
    return float((chance * value).sum())


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric()], ids=["log-linear", "geometric"])
@BOTH
def test_dse_is_lambda_dce_on_its_range_and_t_dce_is_offset(schedule, denoiser):
    import numpy as np

    process, x = Absorbing(V, schedule), EXACT.sample(1, 3)[0]
    nodes, weights = np.polynomial.legendre.leggauss(120)
    got = dict.fromkeys(("dse", "t-dce"), 0.0)
    for loss in got:
        objective = TokenDenoising(loss=loss, low=1e-2)
        for node, weight in zip(nodes, weights, strict=True):
            got[loss] += weight / 2 * integrand(objective, process, x, (node + 1) / 2, denoiser)
    low, high = (float(process.at(t).mask) for t in (1e-2, 1.0))
    expected = over_share(denoiser, x, low, high)
    assert abs(got["dse"] - expected) < 1e-6
    # -int r log r weight = -E[masked] int log((1 - m) / m) / m dm = -L int log((1 - m) / m) dm
    whole = lambda m: -(1 - m) * math.log(max(1 - m, 1e-300)) + (1 - m) - m * math.log(m) + m
    offset = -L * (whole(high) - whole(low))
    assert abs(got["t-dce"] - got["dse"] - offset) < 5e-4 < 4e-3 < abs(offset)


@pytest.mark.parametrize("loss", ["lambda-dce", "k-dce", "dse", "t-dce"])
def test_drawn_losses_have_the_enumerated_mean(loss):
    x, denoiser = EXACT.sample(1, 3), Wrong(EXACT)
    objective = TokenDenoising(loss=loss, low=1e-2)
    got = objective(denoiser, {"x": x.expand(60_000, L)}, 0)
    low, high = (0.0, 1.0) if loss in ("lambda-dce", "k-dce") else (1e-2, 1.0)
    extra = (lambda m, count: -torch.log((1 - m) / m) * count) if loss == "t-dce" else (lambda m, count: 0.0)
    expected = over_share(denoiser, x[0], low, high, extra) / L
    error = got.per_sample.std() / 60_000**0.5
    assert abs(got.loss - expected) < 4 * error < 0.06
    assert objective.bounds_likelihood == (loss != "t-dce")


def test_the_score_entropy_is_the_weighted_cross_entropy():
    """sigma [sum_v s_v - r log s_true + r (log r - 1)] with s = r c, from the process's rates."""
    process = Absorbing(V, LogLinear(eps=1e-3))
    x = EXACT.sample(64, 0)
    truth = process.forward(x, 0.4, rng=0)
    said = oracles.tokens(process, law(seed=5))(truth.x_t, truth.level)
    level = truth.level
    sigma, r = level.d_mask / level.visible, level.visible / level.mask
    s = process.log_ratios(said)[..., :V].exp()
    true = s.gather(-1, x[..., None])[..., 0]
    entropy = sigma * (s.sum(-1) - r * true.log() + r * (math.log(r) - 1.0))
    expected = torch.where(truth.masked, entropy, 0.0).sum(-1)
    objective = TokenDenoising(loss="dse", low=0.0)
    got = objective.value(said, truth, torch.full((64,), float(level.reveal_rate), dtype=torch.float64))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


# Likelihood


@pytest.mark.parametrize("rule", ["share", "count"])
def test_the_bound_is_unbiased(rule):
    x, denoiser = EXACT.sample(1, 3), Wrong(EXACT)
    got = order_bound(denoiser, x.expand(16_000, L), 8, law=rule, rng=1)
    expected = -each_order(denoiser, x[0]).mean()
    assert abs(got.total.mean() - expected) < 4 * got.total.std() / 16_000**0.5 < 0.06
    assert got.calls == 8 and got.kind == "lower bound"


def test_one_order_is_exact_with_exact_conditionals():
    chain = radd.language()
    x = chain.sample(20, 0)
    got = order_bound(chain, x, 2, law="order", rng=0, rows=7)
    torch.testing.assert_close(got.total, chain.log_prob(x), rtol=0, atol=1e-9)
    assert got.error.max() < 1e-9 and got.calls == 64
    torch.testing.assert_close(bits_per_dim(got.total, 32), -got.total / 32 / math.log(2))


def test_draws_are_one_in_each_part():
    """Counts of masks: every one once, over a batch in training and over the draws of a sequence in the bound."""
    counts = []

    class Watching:
        process, shape, time_free = EXACT.process, (L,), True

        def __call__(self, x_t, t, cond=None):
            counts.append((x_t == V).sum(-1))
            return EXACT(x_t, t)

    x = EXACT.sample(3 * L, 0)
    order_bound(Watching(), x, L, rng=0)
    assert torch.equal(torch.stack(counts).sort(0).values, torch.arange(1, L + 1)[:, None].expand(L, 3 * L))
    seen = TokenDenoising(loss="k-dce")(Watching(), {"x": x}, 0).t.sort().values
    torch.testing.assert_close(seen, torch.arange(1, L + 1).repeat_interleave(3).double() / L)
    shares = TokenDenoising()(EXACT, {"x": x}, 0).t.sort().values * 3 * L
    assert torch.equal(shares.ceil(), torch.arange(1, 3 * L + 1).double())
    free = TokenDenoising(stratified=False)(EXACT, {"x": x}, 0).t.sort().values * 3 * L
    assert not torch.equal(free.ceil(), torch.arange(1, 3 * L + 1).double())


def test_the_bound_follows_the_conditions_of_its_rows():
    both = oracles.tokens(Absorbing(V), torch.stack([law(), law(seed=1)]), classes=[0.5, 0.5])
    x, cond = both.sample(7, 0), {"label": torch.arange(7) % 2}
    got = order_bound(both, x, 1, law="order", rng=0, cond=cond, rows=2)
    torch.testing.assert_close(got.total, both.log_prob(x, 0.0, cond), rtol=0, atol=1e-9)


# Sampling


def test_expected_calls_and_their_limit():
    chain = oracles.markov(Absorbing(4), torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + 0.1, 12)
    for n in (6, 12, 48):
        *_, last = trajectory(chain, torch.full((2000, 12), 4), solver=TokenAncestral(), steps=n, rng=0)
        calls = last.state.extra["nfe"]
        assert abs(calls.double().mean() / (n * (1 - (1 - 1 / n) ** 12)) - 1.0) < 0.01
        assert calls.max() <= min(n, 12)
    for n, length, known in ((1024, 1024, 647.5), (4096, 1024, 906.1)):
        assert abs(n * (1 - (1 - 1 / n) ** length) - known) < 0.05


def test_tweedie_and_euler_reveal_at_one_rate_for_log_linear_masks_only():
    gaps = {}
    for name, schedule in (("log-linear", LogLinear(eps=1e-3)), ("geometric", Geometric())):
        process = Absorbing(V, schedule)
        levels = process.levels(torch.linspace(1.0, 1e-5, 65, dtype=torch.float64))
        gaps[name] = max(
            abs((1 - s.mask / t.mask) - min(1.0, (t.t - s.t) * t.reveal_rate)) for t, s in itertools.pairwise(levels)
        )
    assert gaps["log-linear"] < 1e-6 < 1e-2 < gaps["geometric"]


def test_the_sampled_law_converges_at_first_order():
    """All states, all transitions: total variation to the law halves as the steps double."""
    states = torch.tensor(list(itertools.product(range(V + 1), repeat=L)))
    clean, errors = (states < V).all(-1), []
    for n in (4, 8, 16, 32):
        p = torch.zeros(len(states), dtype=torch.float64)
        p[-1] = 1.0
        for t, s in itertools.pairwise(EXACT.process.levels(torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64))):
            live = p > 0
            kernel = EXACT.process.posterior(EXACT(states[live], t), s).exp()
            p = p[live] @ math.prod(kernel[:, i][:, states[:, i]] for i in range(L))
        errors.append(float((p[clean] - law().flatten()).abs().sum()) / 2)
    rates = [a / b for a, b in itertools.pairwise(errors)]
    assert all(1.8 < rate < 2.2 for rate in rates) and errors[-1] < 0.03


def network(time=False, vocab=8, length=16):
    torch.manual_seed(0)
    net = TokenTransformer(shape=(length,), vocab=vocab, width=16, depth=2, heads=2, time=time)
    torch.nn.init.normal_(net.output.weight, std=0.5)
    return TokenDenoiser(net, Absorbing(vocab), (length,), time_free=not time).eval()


FILTERS = [TokenFilter(), TokenFilter(top_p=0.8), TokenFilter(top_k=3), TokenFilter(temperature=0.5)]


@pytest.mark.parametrize("kept", FILTERS, ids=["plain", "top-p", "top-k", "temperature"])
@pytest.mark.parametrize("solver", [TokenAncestral, TauLeaping, Unmask])
def test_reuse_changes_no_token_and_given_ones_stay(solver, kept):
    model = network()
    model.process = Absorbing(8, LogLinear(eps=1e-3))
    known = torch.rand(12, 16, generator=torch.Generator().manual_seed(1)) < 0.3
    given = torch.randint(0, 8, (12, 16), generator=torch.Generator().manual_seed(2))
    start = infill(model.process, given, known)
    with torch.no_grad():
        x = [
            sample(model, initial=start, held=known, solver=solver(filter=kept, reuse=reuse), steps=40, seed=0)
            for reuse in (True, False)
        ]
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0][known], given[known])
    assert int(x[0].max()) < 8


def test_the_network_hears_no_time():
    model = network()
    x = torch.randint(0, 9, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = model(x, 0.1).log_probs
        assert torch.equal(first, model(x, 0.9).log_probs)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(model(x[order], 0.5).log_probs, first[order])
        told = network(time=True)
        for block in told.network.stack:
            torch.nn.init.normal_(block.modulation.weight, std=0.1)
        assert not torch.equal(told(x, 0.1).log_probs, told(x, 0.9).log_probs)
    fresh = TokenTransformer(shape=(16,), vocab=8, width=16, depth=2, heads=2)
    assert fresh(x, None).abs().max() == 0.0  # uniform


# Released weights


def theirs(depth=2, width=8, vocab=5, seed=0):
    """A state dictionary with the released network's names and shapes."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"vocab_embed.embedding": (vocab + 1, width), "rotary_emb.inv_freq": (2,)}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (width,), f"blocks.{i}.{norm}.bias": (width,)}
        shapes |= {f"blocks.{i}.attn_qkv.weight": (3 * width, width), f"blocks.{i}.attn_out.weight": (width, width)}
        for j, (a, b) in enumerate(((4 * width, width), (width, 4 * width))):
            shapes |= {f"blocks.{i}.mlp.{2 * j}.weight": (a, b), f"blocks.{i}.mlp.{2 * j}.bias": (a,)}
    shapes |= {"output_layer.norm_final.weight": (width,), "output_layer.norm_final.bias": (width,)}
    shapes |= {"output_layer.linear.weight": (vocab + 1, width), "output_layer.linear.bias": (vocab + 1,)}
    return {name: torch.randn(shape, generator=g) * 0.5 for name, shape in shapes.items()}


def by_the_book(w, x, heads, depth=2):
    """The released network written out: pre-norm blocks, half-split rotation, softmax over the data tokens."""
    import torch.nn.functional as F

    norm = lambda h, n: F.layer_norm(h, h.shape[-1:]) * w[f"{n}.weight"] + w[f"{n}.bias"]
    h = w["vocab_embed.embedding"][x]
    size = h.shape[-1] // heads
    angle = torch.arange(x.shape[1])[:, None] / 10000.0 ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    turn = lambda a: a * cos + torch.cat([-a[..., size // 2 :], a[..., : size // 2]], -1) * sin
    for i in range(depth):
        b = f"blocks.{i}"
        q, k, v = (norm(h, f"{b}.norm1") @ w[f"{b}.attn_qkv.weight"].T).chunk(3, -1)
        q, k, v = (a.unflatten(-1, (heads, size)).transpose(1, 2) for a in (q, k, v))
        weights = (turn(q) @ turn(k).transpose(-1, -2) / size**0.5).softmax(-1)
        h = h + (weights @ v).transpose(1, 2).flatten(2) @ w[f"{b}.attn_out.weight"].T
        inner = F.gelu(norm(h, f"{b}.norm2") @ w[f"{b}.mlp.0.weight"].T + w[f"{b}.mlp.0.bias"], approximate="tanh")
        h = h + inner @ w[f"{b}.mlp.2.weight"].T + w[f"{b}.mlp.2.bias"]
    out = norm(h, "output_layer.norm_final") @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]
    return out[..., :-1].log_softmax(-1)


def test_released_weights_give_the_released_network():
    weights = theirs()
    model = radd.released(weights, heads=2, length=6)
    x = torch.full((3, 6), 5)
    x[1, ::2], x[2, 3] = 2, 4
    with torch.no_grad():
        got = model(x, 0.5).log_probs
    masked = x == 5
    torch.testing.assert_close(got[masked], by_the_book(weights, x, 2)[masked], rtol=1e-4, atol=1e-5)
    assert model.time_free and model.process == Absorbing(5, LogLinear(eps=1e-3))


def test_other_weights_are_refused():
    weights = theirs()
    with pytest.raises(Incompatible, match=r"blocks\.0\.norm1\.weight is missing"):
        radd.released({k: v for k, v in weights.items() if k != "blocks.0.norm1.weight"}, heads=2)
    with pytest.raises(Incompatible, match="hold more than"):
        radd.released({**weights, "sigma_map.mlp.0.weight": torch.zeros(1)}, heads=2)
    with pytest.raises(Incompatible, match="aren't weights of RADD"):
        radd.released({"conv.weight": torch.zeros(1)}, heads=2)


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TokenDenoising(loss="mse"), BadValue, "unknown loss"),
        (lambda: TokenDenoising(low=1.0), BadValue, "low must lie"),
        (lambda: TokenDenoising()(EXACT, {"x": torch.full((2, L), V)}, 0), BadValue, "MASK is 3"),
        (lambda: TokenDenoising()(EXACT, {"x": torch.zeros(2, L)}, 0), BadType, "integer ids"),
        (
            lambda: TokenDenoising()(
                EXACT, {"x": torch.zeros(2, L).long(), "mask": torch.ones(2, L, dtype=torch.bool)}, 0
            ),
            BadValue,
            "every token counts",
        ),
        (
            lambda: TokenDenoising()(oracles.tokens(UniformTokens(2), law(2, 2)), {"x": EXACT.rows}, 0),
            Incompatible,
            "A",
        ),
        (lambda: order_bound(EXACT, EXACT.rows, 0), BadValue, "at least 1"),
        (lambda: order_bound(EXACT, EXACT.rows, law="t-dce"), BadValue, "unknown law"),
        (lambda: order_bound(EXACT, EXACT.rows + 1), BadValue, "MASK is 3"),
        (lambda: sample(EXACT, solver=TokenAncestral(), steps=0, num=1), BadValue, "steps"),
        (lambda: TokenFilter(top_p=0.0), BadValue, "top_p"),
        (lambda: sample(EXACT, solver=TokenAncestral(TokenFilter(top_k=4)), steps=2, num=1), BadValue, "vocabulary"),
        (
            lambda: TokenDenoiser(TokenTransformer(shape=(4,), vocab=5, width=8, depth=1, heads=2), Absorbing(6)),
            Incompatible,
            "predicts 5 tokens",
        ),
        (lambda: radd.recipe(Facts((1, 8, 8))), BadValue, "condiff train text"),
        (lambda: TokenData(torch.tensor([0, 3]), 2, 3), BadValue, "MASK is 3"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
