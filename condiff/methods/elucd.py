"""EluCD: a frozen diffusion model steered by an ordinary classifier of clean images.

Reference: Ma, Hu, Wang & Sun, "Elucidating The Design Space of Classifier-Guided Diffusion Generation", ICLR 2024
(arXiv 2310.11311), and the released samplers.

    S_y(u) = joint l_y(u) - log sum_i exp(marginal l_i(u))          logits l of the clean classifier
    mean   = mean + (std^2 + b_t) grad S_y(x0_hat)                  b_t = 0.3 sin(pi k / N) max std^2     (DDPM)
    noise  = noise - scale noise(t) grad S_y(x0_hat)                                                      (any solver)
    x      = x + w_i rms(x) g / rms(g),  g = grad S_y(x / rms(x))                                         (EDM)

Four repairs of plugging a clean classifier into a sampler: it looks at the denoised x0_hat (detached), its ReLUs become
Softplus, its logits get a joint and a marginal temperature, and the strength follows a sine over the steps. The parts
are general: :class:`condiff.guidance.ClassScore`, :func:`condiff.networks.soften`, ``MeanShift(at="x0")`` with
:class:`condiff.sampling.SineBoost`, :class:`condiff.sampling.Nudge`. The functions here put them together with the
published numbers.

Differences from the released code, which takes the maximum of the variance at one pixel (here: the largest of each
sample's elements, which with fixed variances is the same), overflows for large logits, and shifts the mean of the last
step too, which adds no noise (here: no variance, no shift). The gradient at x0_hat is applied to x_t as it is: the
factor ``(a / s^2) Cov[x0 | x_t]`` is left out, so a scale can't be carried over from one place to another.

Claimed: a clean classifier guides as well as one trained on noise, or better. :func:`reproduce` measures on digits what
of it holds there: agreement with the class asked for at one scale, and quality at the best scale of each.
"""

from __future__ import annotations

import torch
from torch import nn

from condiff.conditions import Conditions
from condiff.data import TensorData
from condiff.guidance import ClassScore, Energy, gradient
from condiff.methods import experiment
from condiff.methods.experiment import Trained
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.metrics import class_accuracy, frechet
from condiff.networks import MLPConfig, soften
from condiff.process import Cosine, Gaussian, Level
from condiff.random import as_source, seeded_weights
from condiff.sampling import DDPM, ClipX0, Hook, MeanShift, Nudge, SineBoost, SineShare, sample
from condiff.training import Denoising


def on_mean(score: ClassScore, scale: float = 1.0, boost: float = 0.3, clip: float | None = 1.0) -> list[Hook]:
    """Hooks for ancestral sampling: the posterior mean shifted by the gradient at the clipped x0_hat."""
    first: list[Hook] = [] if clip is None else [ClipX0(-clip, clip)]
    return [*first, MeanShift(gradient(score), scale=scale, at="x0", extra=SineBoost(boost))]


def on_state(score: ClassScore, strength: float = 0.004, swell: float = 0.3) -> list[Hook]:
    """Hooks for EDM's sampler, or any: the state displaced before each step."""
    return [Nudge(gradient(score), SineShare(strength, swell))]


def on_noise(denoiser, score: ClassScore, scale: float = 1.0, through: bool = False) -> Energy:
    """A denoiser whose score is shifted, for deterministic solvers.

    Args:
        through: differentiate through the denoiser, with the factor that the released samplers leave out.
    """

    def energy(u: torch.Tensor, level: Level, cond: Conditions) -> torch.Tensor:
        return -score(u, level, cond)

    return Energy(denoiser, energy, scale=scale, at="x0", through=through)


# The reproduction

ARMS = {  # name -> (looks at, marginal temperature, sharpness of the Softplus, boost, scales)
    "on x_t": ("x_t", 1.0, float("inf"), 0.0, (1.0, 3.0, 10.0, 20.0)),
    "on x0": ("x0", 1.0, float("inf"), 0.0, (1.0, 3.0, 10.0, 20.0)),
    "on x0, marginal 0.5": ("x0", 0.5, float("inf"), 0.0, (0.1, 0.3, 1.0)),
    "all repairs": ("x0", 0.5, 3.0, 0.3, (0.03, 0.1, 0.3, 1.0)),
}


def reproduce(budget: str = "small") -> Reproduction:
    """Digits: an unconditional model and a clean ReLU classifier; agreement at one scale, quality at the best one."""
    lab = experiment.Digits("elucd", budget, steps=1500)
    rows = lab.data.batch(range(len(lab.data)))  # type: ignore[union-attr, arg-type]
    recipe = Recipe(
        method="elucd",
        network=MLPConfig(shape=lab.facts.shape, width=256, depth=4),  # no condition
        process=Gaussian(Cosine()),
        target="v",
        objective=Denoising(),
        training=lab.facts.training(),
        sampler=Sampler(solver=DDPM(), steps=50),
    )
    figures: dict[str, list[float]] = {}
    for seed in lab.seeds:
        model = lab.train(recipe, seed, data=TensorData(rows["x"]))
        classifier = clean_classifier(rows["x"], rows["cond"]["label"], seed)
        for name, (at, marginal, beta, boost, scales) in ARMS.items():
            swap = soften(classifier, beta)
            for scale in scales:
                score = ClassScore(classifier, lab.labels(400), marginal=marginal)
                shift = MeanShift(gradient(score), scale=scale, at=at, extra=SineBoost(boost))
                _measure(lab, model, seed, [ClipX0(), shift], f"{name}, scale {scale:g}", figures)
            if swap is not None:
                swap.undo()
        _measure(lab, model, seed, [ClipX0()], "unguided", figures)
        lab.say(f"seed {seed}: scored {len(figures)} settings")
    return lab.outcome("a clean classifier guides well once it looks at x0", _comparisons(figures), series=figures)


def _measure(lab: experiment.Digits, model: Trained, seed: int, hooks: list[Hook], name: str, figures: dict) -> None:
    x = sample(model.denoiser, solver=DDPM(), steps=50, num=400, seed=10_000 + seed, hooks=hooks)
    labels, real = lab.labels(400), lab.heldout.batch(range(len(lab.heldout)))["x"]
    agreement = class_accuracy(lab.judge.predict(x), labels)
    distance = frechet(lab.judge.features(x), lab.judge.features(real))
    for metric, value in (("agreement", agreement), ("frechet", distance)):
        figures.setdefault(f"{metric}: {name}", []).append(float(value))


def _comparisons(figures: dict[str, list[float]]) -> tuple[Comparison, ...]:
    def best(arm: str) -> tuple[float, ...]:
        """Of each seed the least Fréchet distance over the scales of an arm."""
        columns = [v for k, v in figures.items() if k.startswith(f"frechet: {arm}, scale")]
        return tuple(min(column) for column in zip(*columns, strict=True))

    return (
        Comparison(
            name="agreement with the class asked for, scale 1",
            baseline_name="on x_t",
            baseline=tuple(figures["agreement: on x_t, scale 1"]),
            ours_name="on x0",
            ours=tuple(figures["agreement: on x0, scale 1"]),
            lower_is_better=False,
        ),
        Comparison(
            name="agreement with the class asked for, scale 1, on x0",
            baseline_name="marginal temperature 1",
            baseline=tuple(figures["agreement: on x0, scale 1"]),
            ours_name="marginal temperature 0.5",
            ours=tuple(figures["agreement: on x0, marginal 0.5, scale 1"]),
            lower_is_better=False,
        ),
        Comparison(
            name="Fréchet distance at the best scale of each",
            baseline_name="clean classifier on x_t",
            baseline=best("on x_t"),
            ours_name="all repairs",
            ours=best("all repairs"),
        ),
    )


def clean_classifier(x: torch.Tensor, labels: torch.Tensor, seed: int, epochs: int = 30) -> nn.Module:
    """A ReLU network with two hidden layers, trained on clean samples only."""
    with seeded_weights(seed):
        hidden = 128
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(x[0].numel(), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, int(labels.max()) + 1),
        )
    optimizer, source = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01), as_source(seed)
    for _ in range(epochs):
        for rows in source.uniform((len(x),)).argsort().split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)
