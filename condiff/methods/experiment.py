"""What reproductions share: the data's facts, training a recipe, drawing, and scoring."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.conditions import Dropout, Endpoint, Map, Spec
from condiff.data import Data, digits
from condiff.denoiser import Denoises
from condiff.errors import BadValue
from condiff.methods.recipe import (
    Recipe,
    Sampler,
    default_network,
    default_token_network,
    default_token_training,
    default_training,
    embedding_for,
)
from condiff.methods.reproduction import Comparison, Reproduction, check_budget, machine
from condiff.metrics import digit_classifier, evaluate
from condiff.sampling import Grid, Uniform, sample
from condiff.training import TrainConfig, Trainer

MOST_NUMBERS = 2**28  # of examples that are looked at: a gigabyte


@dataclass(frozen=True)
class Facts:
    """What a method needs to know of a data set to make a recipe.

    Args:
        shape: of one sample.
        embeddings: how each condition is embedded.
        std: standard deviation of the values.
        count: number of samples.
        examples: some of the samples, at most 4096 and evenly spread, for what is measured on data; None when unknown.
        vocab: number of tokens of samples that are ids; None for values.
    """

    shape: tuple[int, ...]
    embeddings: Mapping[str, Spec] = field(default_factory=dict)
    std: float = 0.5
    count: int = 0
    examples: Tensor | None = field(default=None, repr=False, compare=False)
    vocab: int | None = None

    @classmethod
    def of(cls, data: Data) -> Facts:
        """The facts of a data set; up to 4096 samples, evenly spread over it, give the standard deviation."""
        few = min(len(data), 4096, max(1, MOST_NUMBERS // math.prod(data.shape)))
        some = data.batch(torch.linspace(0, len(data) - 1, few, dtype=torch.float64).long())
        classes = len(data.classes) or None
        embeddings = {
            name: embedding_for(data.kinds.get(name, "label"), value, classes) for name, value in some["cond"].items()
        }
        return cls(tuple(data.shape), embeddings, float(some["x"].double().std()), len(data), some["x"], data.vocab)

    def encoded(self, codec: Codec) -> Facts:
        """The facts of the same data seen through a codec: latents, and maps that it takes as latents too.

        Raises:
            BadValue: samples that the codec doesn't take.
        """
        sides = self.shape[1:]
        embeddings = {name: _encoded(spec, codec, sides) for name, spec in self.embeddings.items()}
        with torch.no_grad():
            examples = None if self.examples is None else codec.encode(self.examples)
        std = self.std if examples is None else float(examples.double().std())
        return Facts(codec.latent_shape(self.shape), embeddings, std, self.count, examples)

    def network(self) -> Any:
        """The default network for this data."""
        if self.vocab is not None:
            return default_token_network(self.shape, self.vocab, self.count)
        return default_network(self.shape, self.embeddings)

    def training(self) -> TrainConfig:
        """The default training for this data."""
        if self.vocab is not None:
            return default_token_training(self.shape, self.count)
        return default_training(self.shape, self.count)

    def dropout(self, p: float) -> Dropout | None:
        """Condition dropout for classifier-free guidance; None without conditions."""
        return Dropout(p) if self.embeddings else None

    def with_endpoint(self, method: str) -> Facts:
        """The same facts, with the one condition that is a picture like the sample as the process's endpoint.

        Raises:
            BadValue: there is none such, or several.
        """
        like = [n for n, spec in self.embeddings.items() if isinstance(spec, Map | Endpoint)]
        if len(like) != 1 or self.embeddings[like[0]].extra_channels != self.shape[0] + 1:
            raise BadValue(
                f"{method} goes from a given picture to a sample of the same shape {self.shape}: the data needs one "
                f"such condition (condiff train pairs --data DEGRADED --data CLEAN), it has {list(self.embeddings)}"
            )
        return replace(self, embeddings={**self.embeddings, like[0]: Endpoint(self.shape[0])})

    def need_tokens(self, method: str) -> int:
        """The vocabulary.

        Raises:
            BadValue: data that isn't tokens.
        """
        if self.vocab is None:
            raise BadValue(f"{method} makes token sequences: condiff train text --data FILE; this data has values")
        return self.vocab

    def need_conditions(self, method: str) -> None:
        """Refuse data without conditions."""
        if not self.embeddings:
            raise BadValue(f"{method} guides by a condition, and the data has none: give labels, or use flow-matching")


def _encoded(spec: Spec, codec: Codec, sides: tuple[int, ...]) -> Spec:
    """How the network is told of a condition when a codec encodes it."""
    if not isinstance(spec, Map | Endpoint) or not codec.takes((spec.channels, *sides)):
        return spec
    return replace(spec, channels=codec.latent_shape((spec.channels, *sides))[0])


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
