"""RADD: masked diffusion of tokens by a network that isn't told the time.

Reference: Ou, Nie, Xue, Zhu, Sun, Li & Li, "Your Absorbing Discrete Diffusion Secretly Models the Conditional
Distributions of Clean Data", ICLR 2025 (arXiv 2406.03736).

    mask(t) = (1 - eps) t       p_t(y) / p_t(x) = (1 - mask) / mask  p(x0^i = v | visible tokens of x)
    loss    = int_0^1 (1 / m) E sum_masked -log c_i dm
    step    : each MASK is revealed with probability 1 - mask_s / mask_t, drawn from c

where y is x with its MASK at i replaced by v. The concrete score is a known number of t times a conditional that
doesn't depend on t; so a network c(visible tokens) is enough, a sequence none of whose tokens changed needs no new
evaluation, and the loss is an autoregressive one averaged over all orders: a bound on the likelihood.

The paper's symbols: sigma-bar is ``-log(1 - mask)``, lambda is ``mask``, NFE are counted a sequence. What differs from
the released code: MASK can't be drawn by top-p or top-k; the cache is kept per sequence and evaluates no finished
one; draws are float64; new networks have layer norms with a bias of 0 and attention with biases. :func:`released` reads
the released weights.

Claimed: a network without the time is as good as one that is told it, and at four steps a token the reuse saves three
quarters of the evaluations. :func:`reproduce` measures both on a language whose law, and so its entropy, is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from condiff.data import TokenData
from condiff.errors import Incompatible
from condiff.methods import experiment
from condiff.methods.experiment import Facts, Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import order_bound
from condiff.networks import TokenTransformer, TokenTransformerConfig
from condiff.process import Absorbing, oracles
from condiff.process.keep import LogLinear
from condiff.sampling import TokenAncestral, trajectory
from condiff.token_denoiser import TokenDenoiser
from condiff.training import TokenDenoising, TrainConfig


def recipe(facts: Facts) -> Recipe:
    """The method on token sequences."""
    vocab = facts.need_tokens("radd")
    return Recipe(
        method="radd",
        network=facts.network(),
        process=Absorbing(vocab),
        target="tokens",
        objective=TokenDenoising(),
        training=facts.training(),
        sampler=Sampler(solver=TokenAncestral(), steps=4 * facts.shape[0]),
    )


def released(tensors: Mapping[str, Tensor], heads: int, length: int = 1024) -> TokenDenoiser:
    """The denoiser of the authors' weights (``model.safetensors`` of JingyangOu/radd-lambda-dce and radd-t-dce).

    Args:
        tensors: their state dictionary: ``vocab_embed.embedding``, ``blocks.0.attn_qkv.weight`` ...
        heads: of attention, which the weights don't tell: 12 for small, 16 for medium.
        length: of sequences.

    MASK's row of their head, which nothing trained, is left out.

    Raises:
        Incompatible: weights of another network, naming a tensor that is missing or left over.
    """
    given = {name.removeprefix("model."): value for name, value in tensors.items()}
    size, width = given["vocab_embed.embedding"].shape if "vocab_embed.embedding" in given else (0, 0)
    depth = 1 + max((int(name.split(".")[1]) for name in given if name.startswith("blocks.")), default=-1)
    if size < 3 or depth < 1:
        raise Incompatible(
            f"these aren't weights of RADD: no vocab_embed.embedding or no blocks in {sorted(given)[:4]}"
        )
    config = TokenTransformerConfig(shape=(length,), vocab=size - 1, width=width, depth=depth, heads=heads)
    network = TokenTransformer(config)
    own = network.state_dict()
    for name, target in own.items():
        theirs = _their_name(name)
        if theirs is None:  # attention without biases
            own[name] = torch.zeros_like(target)
        elif theirs not in given:
            raise Incompatible(f"these aren't weights of RADD: {theirs} is missing")
        else:
            own[name] = given.pop(theirs)[: len(target)].to(target)
    left = [name for name in given if not name.endswith("inv_freq")]
    if left:
        raise Incompatible(f"these weights hold more than RADD's network: {', '.join(sorted(left)[:4])}")
    network.load_state_dict(own)
    process = Absorbing(size - 1, LogLinear(eps=1e-3))
    return TokenDenoiser(network, process, (length,), time_free=True).eval()


_THEIRS = {
    "norms.0": "norm1",
    "norms.1": "norm2",
    "attn.qkv": "attn_qkv",
    "attn.out": "attn_out",
    "feed_forward.fc1": "mlp.0",
    "feed_forward.fc2": "mlp.2",
}


def _their_name(name: str) -> str | None:
    """The released name of one of our tensors, None for biases that they don't have."""
    if name == "embed.weight":
        return "vocab_embed.embedding"
    part, _, end = name.rpartition(".")
    if part in ("norm", "output"):
        return f"output_layer.{'norm_final' if part == 'norm' else 'linear'}.{end}"
    _, index, inner = part.split(".", 2)
    return None if inner.startswith("attn") and end == "bias" else f"blocks.{index}.{_THEIRS[inner]}.{end}"


# Reproduction

VOCAB, LENGTH, STEPS = 8, 32, 600


def language(seed: int = 0) -> oracles.TokenChain:
    """A Markov chain of 8 symbols, 32 to a sentence, whose entropy is known."""
    kernel = torch.rand(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    return oracles.markov(Absorbing(VOCAB), kernel, LENGTH)


def small(facts: Facts, time: bool = False) -> Recipe:
    """A network of two blocks, told the time or not."""
    own = recipe(facts)
    network = TokenTransformerConfig(shape=facts.shape, vocab=facts.need_tokens("radd"), width=64, depth=2, heads=4)
    training = TrainConfig(steps=STEPS, lr=3e-3, warmup=60, weight_decay=0.0, ema=(0.99,))
    return replace(own, network=replace(network, time=time), training=training)


def reproduce(budget: str = "small") -> Reproduction:
    """The bound against the exact entropy and against a network that is told the time; calls; samples' likelihood."""
    lab = experiment.Lab("radd", budget, steps=STEPS)
    chain = language()
    data = TokenData.of_rows(chain.sample(20_000, 1), VOCAB, "markov")
    heldout = chain.sample(512, 2)
    exact = -float(chain.log_prob(heldout).mean())
    found: dict[str, list[float]] = {"radd": [], "told": [], "calls": [], "off": []}
    for seed in lab.seeds:
        for name, time in (("radd", False), ("told", True)):
            model = lab.train(small(Facts.of(data), time), seed, data)
            found[name].append(-float(order_bound(model.denoiser, heldout, 16, rng=seed).total.mean()))
            lab.say(f"seed {seed}: {name} {found[name][-1]:.3f} nats a sentence, exact {exact:.3f}")
            if not time:
                nats, calls = _drawn(chain, model, seed)
                found["off"].append(abs(nats - chain.entropy))
                found["calls"].append(calls)
    return lab.outcome(
        "a network without the time bounds the likelihood as well as one with it, and needs few calls at many steps",
        _comparisons(found, exact, chain.entropy),
        f"sentences of a Markov chain of {VOCAB} symbols, length {LENGTH}; {lab.steps} steps of batch 128, lambda-DCE",
        {"exact_nats": exact, "entropy_nats": chain.entropy},
    )


def _drawn(chain: oracles.TokenChain, model: Trained, seed: int, num: int = 512) -> tuple[float, float]:
    """Mean ``-log p`` under the true chain of samples at four steps a token, and mean network calls of a sample."""
    start = torch.full((num, LENGTH), chain.process.mask_id)
    with torch.no_grad():
        run = trajectory(model.denoiser, start, solver=TokenAncestral(), steps=4 * LENGTH, rng=10_000 + seed)
        *_, last = run
    return -float(chain.log_prob(last.x_s).mean()), float(last.state.extra["nfe"].double().mean())


def _comparisons(found: Mapping[str, list[float]], exact: float, entropy: float) -> tuple[Comparison, ...]:
    seeds, radd = len(found["radd"]), tuple(found["radd"])
    return (
        Comparison(
            name="bound on held-out sentences, nats",
            baseline_name="exact + 2 %",
            baseline=(1.02 * exact,) * seeds,
            ours_name="radd",
            ours=radd,
        ),
        Comparison(
            name="bound on held-out sentences, nats",
            baseline_name="told the time + 1 %",
            baseline=tuple(1.01 * value for value in found["told"]),
            ours_name="radd",
            ours=radd,
        ),
        Comparison(
            name="network calls of a sample at 128 steps",
            baseline_name="one a step",
            baseline=(4.0 * LENGTH,) * seeds,
            ours_name="where tokens changed",
            ours=tuple(found["calls"]),
            margin=0.74,
        ),
        Comparison(
            name="samples' -log p under the chain: distance to the entropy, nats",
            baseline_name="2 % of the entropy",
            baseline=(0.02 * entropy,) * seeds,
            ours_name="radd",
            ours=tuple(found["off"]),
        ),
    )
