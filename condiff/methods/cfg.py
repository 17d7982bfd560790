"""Classifier-free guidance: one network, trained with and without its condition, steers itself.

Reference: Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022 (arXiv 2207.12598).

    guided = absent + scale (conditional - absent),        scale = 1 + w of the paper

During training the condition is flagged absent with probability 0.1. The two evaluations are one batched call.

Claimed: growing scales trade diversity for fidelity. :func:`reproduce` measures class accuracy (up) and the share of
held-out data that the samples cover (down) on digits.
"""

from __future__ import annotations

from dataclasses import replace

from condiff.methods import experiment
from condiff.methods.experiment import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction
from condiff.process import Cosine, Gaussian
from condiff.sampling import DDIM
from condiff.training import Denoising, UniformTimes


def recipe(facts: Facts) -> Recipe:
    """The method on data of the given shape and conditions.

    Raises:
        BadValue: data without conditions: there is nothing to guide with.
    """
    facts.need_conditions("cfg")
    return Recipe(
        method="cfg",
        network=facts.network(),
        process=Gaussian(Cosine()),
        target="v",
        objective=Denoising(times=UniformTimes(), transform=facts.dropout(0.1)),
        training=facts.training(),
        sampler=Sampler(solver=DDIM(eta=1.0), steps=50, guidance=3.0),
    )


def reproduce(budget: str = "small") -> Reproduction:
    """Scale 1 against scale 4: accuracy and recall of the same models."""
    lab = experiment.Digits("cfg", budget)
    chosen = recipe(lab.facts)
    scores: dict[tuple[str, float], list[float]] = {}
    for seed in lab.seeds:
        model = lab.train(chosen, seed)
        for scale in (1.0, 2.0, 4.0):
            figures = lab.score(model, replace(chosen.sampler, guidance=scale), seed)
            for metric in ("class_accuracy", "class_probability", "recall", "frechet"):
                scores.setdefault((metric, scale), []).append(figures[metric])

    def compare(name: str, metric: str, lower: bool) -> Comparison:
        return Comparison(
            name=name,
            baseline_name="scale 1",
            baseline=tuple(scores[metric, 1.0]),
            ours_name="scale 4",
            ours=tuple(scores[metric, 4.0]),
            lower_is_better=lower,
        )

    comparisons = (
        compare("fidelity: probability of the class asked for", "class_probability", lower=False),
        compare("diversity: recall of held-out data (the price)", "recall", lower=True),
    )
    series = {f"{metric} at scale {scale:g}": values for (metric, scale), values in scores.items()}
    return lab.outcome("guidance trades diversity for fidelity", comparisons, series=series)
