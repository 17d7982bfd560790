"""SuperDiff: several pretrained models, or prompts, as one sampler: samples of either (OR) or likely under each (AND).

Reference: Skreta, Atanackovic, Bose, Tong & Neklyudov, "The Superposition of Diffusion Models Using the Itô Density
Estimator", ICLR 2025 (arXiv 2412.17762).

    forward SDE (t = 0 data, t = 1 noise)    dx = f_t(x) dt + g dW
    a step from t to s = t - h, any drift:   d log q_i = <dx, score_i> + h [div f + <f, score_i> - g^2/2 |score_i|^2]
    superposed step:                         dx = h [-f + g^2 sum_i kappa_i score_i] + g sqrt(h) z,  sum_i kappa_i = 1
    OR:   kappa = softmax(T (log q_i + l_i))
    AND:  all d log q_i equal: for two models the average score, the noise projected off score_A - score_B

The estimator is :class:`~condiff.sampling.ItoDensity`, the sampler :class:`~condiff.guidance.Superpose`; any solver
with the reverse SDE's noise serves. What differs from the released code: its OR branch for Stable Diffusion adds
``|ds| / sigma v^2`` where the formula subtracts it; here it is subtracted for all modes. Models may have any
linear-Gaussian process, in one clock, where the code has one form per model. AND of M models is one linear system,
solved only along differences that stand out from rounding. Beside Itô's formula there are kernels of a given spread,
which make absolute densities several times sharper (:mod:`condiff.sampling.gains`).

Claimed: OR draws from the union of what the models know, better than averaging scores does; AND draws what both find
equally likely. :func:`reproduce` measures the first on four blobs and on digits in two halves, the second on blobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from condiff.data import TensorData, digits
from condiff.denoiser import Denoises
from condiff.guidance import Superpose
from condiff.methods.experiment import Facts, Lab
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import digit_classifier, precision_recall
from condiff.process import Cosine, Gaussian
from condiff.process.oracles import Mixture, mixture
from condiff.sampling import DDPM, Grid, Uniform, sample
from condiff.training import Denoising

BLOBS = ((-1.5, 1.5), (1.5, 1.5), (-1.5, -1.5), (1.5, -1.5))  # model A has the upper two, B the lower two
PROCESS = Gaussian(Cosine())
SOLVER = DDPM()


def part_model(facts: Facts) -> Recipe:
    """An unconditional model of one part of the data."""
    return Recipe(
        method="superdiff",
        network=facts.network(),
        process=PROCESS,
        target="v",
        objective=Denoising(),
        training=facts.training(),
        sampler=Sampler(solver=SOLVER, steps=100),
    )


def truth(rows: Sequence[int]) -> Mixture:
    """The exact model of some of the blobs."""
    return mixture(PROCESS, [BLOBS[i] for i in rows], stds=0.4)


def draw(models: Sequence[Denoises], mode: str, seed: int, num: int, steps: int, grid: Grid) -> Tensor:
    """Samples of a superposition, or of the one model."""
    denoiser = models[0] if len(models) == 1 else Superpose(models, mode=mode)
    return sample(denoiser, solver=SOLVER, grid=grid, steps=steps, num=num, seed=10_000 + seed)


def on_blobs(lab: Lab, seed: int) -> dict[str, float]:
    """The exact models of each pair of blobs, superposed; judged by the exact densities."""
    halves = [truth((0, 1)), truth((2, 3))]
    a, b = halves
    out = {}
    for mode in ("or", "and", "average"):
        x = draw(halves, mode, seed, 2000, 400, Uniform(start=0.99, end=0.01))
        either = torch.stack([m.log_prob(x, 0.0) for m in halves], 1).logsumexp(1) - torch.log(torch.tensor(2.0))
        out[f"log-likelihood, {mode}"] = float(either.mean())
        out[f"gap, {mode}"] = float((a.log_prob(x, 0.0) - b.log_prob(x, 0.0)).abs().median())
        out[f"height, {mode}"] = float(x[:, 1].abs().median())
        out[f"upper half, {mode}"] = float((x[:, 1] > 0).double().mean())
    lab.say(f"seed {seed}: blobs")
    return out


def on_digits(lab: Lab, seed: int, num: int = 500) -> dict[str, float]:
    """A model of 0-4 and one of 5-9, superposed; judged by a fixed classifier and by held-out digits."""
    train, heldout = (d.batch(range(len(d))) for d in (digits("train"), digits("test")))
    low = train["cond"]["label"] < 5
    halves = [_trained(lab, TensorData(train["x"][keep], range="keep"), seed) for keep in (low, ~low)]
    judge, out = digit_classifier(), {}
    for name, members in {"or": halves, "average": halves, "one half": halves[:1]}.items():
        x = draw(members, name, seed, num, 100, Uniform())
        share = torch.bincount(judge.predict(x), minlength=10).double() / num
        found = precision_recall(heldout["x"], x)
        out[f"entropy, {name}"] = float(torch.special.entr(share).sum())
        out[f"precision, {name}"], out[f"coverage, {name}"] = found.precision, found.coverage
        out[f"sure, {name}"] = float(judge.probabilities(x).amax(1).mean())
        lab.say(f"seed {seed}: digits, {name}: coverage {found.coverage:.3f}")
    return out


def _trained(lab: Lab, data: TensorData, seed: int) -> Denoises:
    return lab.train(part_model(Facts.of(data)), seed, data).denoiser


def reproduce(budget: str = "small") -> Reproduction:
    """OR and AND against averaging on blobs; OR against averaging on digits in halves."""
    lab = Lab("superdiff", budget, steps=1500)
    figures: dict[str, list[float]] = {}
    for seed in lab.seeds:
        for name, value in {**on_blobs(lab, seed), **on_digits(lab, seed)}.items():
            figures.setdefault(name, []).append(value)

    def compare(name: str, metric: str, ours: str, baseline: str = "average", lower: bool = False) -> Comparison:
        return Comparison(
            name=name,
            baseline_name=baseline,
            baseline=tuple(figures[f"{metric}, {baseline}"]),
            ours_name=ours.upper(),
            ours=tuple(figures[f"{metric}, {ours}"]),
            lower_is_better=lower,
        )

    figures["entropy, 95 % of ten equal classes"] = [0.95 * math.log(10.0)] * len(lab.seeds)
    comparisons = (
        compare("blobs: mean log-likelihood of the mixture", "log-likelihood", "or"),
        compare("blobs: median |log q_A - log q_B|, true densities", "gap", "and", lower=True),
        compare("digits 0-4 and 5-9: coverage of held-out digits", "coverage", "or"),
        compare("digits 0-4 and 5-9: confidence of the judge", "sure", "or"),
        compare("digits 0-4 and 5-9: entropy of the classes", "entropy", "or", baseline="95 % of ten equal classes"),
    )
    claim = "OR draws from both models where averaging blurs them, AND draws what both find equally likely"
    notes = f"blobs: exact models, 400 steps of DDPM; digits: {lab.steps} training steps of batch 128, 100 of DDPM"
    return lab.outcome(claim, comparisons, notes, series=dict(figures))
