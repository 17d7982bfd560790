"""What reproductions share: training a recipe, drawing, and scoring."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from condiff.data import Data, digits
from condiff.denoiser import Denoises
from condiff.errors import BadValue
from condiff.methods.facts import Facts
from condiff.methods.recipe import Recipe, Sampler
from condiff.methods.reproduction import Comparison, Reproduction, check_budget, machine
from condiff.metrics import digit_classifier, evaluate
from condiff.sampling import Grid, Uniform, sample
from condiff.training import Trainer


def until(end: float) -> Grid:
    """Uniform times from 1 to ``end``."""
    return Uniform(end=end)


@dataclass(frozen=True)
class Trained:
    """A trained model with the recipe that made it."""

    recipe: Recipe
    denoiser: Denoises


class Lab:
    """The bench of every reproduction: a few seeds, one clock, training in memory, the record at the end.

    Args:
        slug: the method whose claim is measured.
        budget: ``"small"`` (ten minutes on two cores at most) or ``"gpu"``.
        steps: training steps at the small budget; ten times as many on a GPU.
        data: what recipes are trained on unless told otherwise.
        batch: samples a training step.
    """

    def __init__(self, slug: str, budget: str, *, steps: int = 400, data: Data | None = None, batch: int = 128) -> None:
        self.slug, self.budget = slug, check_budget(budget)
        if budget == "gpu" and not torch.cuda.is_available():
            raise BadValue("budget 'gpu' needs a CUDA device, and torch sees none: use --budget small")
        self.started = time.perf_counter()
        self.data, self.batch = data, batch
        self.seeds = (0, 1, 2) if budget == "small" else (0, 1, 2, 3, 4)
        self.steps = steps if budget == "small" else 10 * steps

    def train(self, recipe: Recipe, seed: int, data: Data | None = None, steps: int | None = None) -> Trained:
        """Train a recipe from a seed, in memory; the averaged weights."""
        data = self.data if data is None else data
        if data is None:
            raise BadValue(f"{self.slug}: give data to train on")
        config = replace(recipe.training, steps=steps or self.steps, batch=self.batch, seed=seed)
        trainer = Trainer(
            recipe.denoiser(seed), recipe.encoded(data), recipe.objective, config, run_dir=None, quiet=True
        )
        status = trainer.fit()
        if status.stopped:  # a half-trained model must not be scored
            raise SystemExit(status.exit_code)
        self.say(f"seed {seed}: trained {recipe.method}, {config.steps} steps")
        return Trained(recipe, cast(Denoises, trainer.averaged()))

    def say(self, text: str) -> None:
        """A line of progress, on standard error."""
        print(f"{time.perf_counter() - self.started:6.0f} s  {text}", file=sys.stderr, flush=True)

    def outcome(
        self, claim: str, comparisons: Sequence[Comparison], notes: str = "", series: dict[str, Any] | None = None
    ) -> Reproduction:
        """The record of this run."""
        return Reproduction(
            slug=self.slug,
            claim=claim,
            budget=self.budget,
            seeds=self.seeds,
            comparisons=tuple(comparisons),
            seconds=round(time.perf_counter() - self.started, 1),
            machine=machine(),
            notes=notes or f"{self.steps} training steps of batch {self.batch}",
            series=series or {},
        )


class Digits(Lab):
    """The bench with handwritten digits and a fixed judge."""

    def __init__(self, slug: str, budget: str, *, steps: int = 400) -> None:
        super().__init__(slug, budget, steps=steps, data=digits("train"))
        self.heldout = digits("test")
        self.facts = Facts.of(digits("train"))
        self.judge = digit_classifier()

    def labels(self, num: int) -> Tensor:
        """Every digit in turn."""
        return torch.arange(num) % 10

    def draw(self, model: Trained, sampler: Sampler, seed: int, num: int = 1000) -> Tensor:
        """Samples of every digit; the same seed gives the same noise whatever the model."""
        return sample(
            model.recipe.guided(model.denoiser, sampler.guidance),
            solver=sampler.solver,
            grid=sampler.grid,
            steps=sampler.steps,
            hooks=sampler.hooks,
            cond={"label": self.labels(num)},
            seed=10_000 + seed,
        )

    def score(self, model: Trained, sampler: Sampler, seed: int, num: int = 1000) -> dict[str, Any]:
        """The figures of ``num`` samples against held-out digits, and the judge's mean probability of their class."""
        x, labels = self.draw(model, sampler, seed, num), self.labels(num)
        scores = self.judged(x, labels)
        self.say(f"seed {seed}: {num} samples, {sampler.steps} steps, guidance {sampler.guidance:g}")
        return scores

    def judged(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
        """The figures of samples that were made by any means."""
        train, heldout = (d.batch(range(len(d)))["x"] for d in (digits("train"), self.heldout))
        scores = evaluate(x, train, heldout, labels=labels, classifier=self.judge)
        sure = self.judge.probabilities(x).gather(1, labels[:, None]).mean()
        return {**scores, "class_probability": float(sure)}

    def outcome(
        self, claim: str, comparisons: Sequence[Comparison], notes: str = "", series: dict[str, Any] | None = None
    ) -> Reproduction:
        """The record of this run, which says that it was on digits."""
        return super().outcome(claim, comparisons, notes or f"digits, {self.steps} training steps of batch 128", series)
