"""Measures: how far what a denoiser says of one ``x_t`` is from the truth, a number a sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, unknown
from condiff.fields import checked
from condiff.process import KINDS, Level, Prediction
from condiff.process.algebra import Weight
from condiff.training import ELBO, Denoising, Distance, LearnedVariance, UniformWeight, Weighting
from condiff.training.objective import DISTANCES


class Measure(ABC):
    """Base: ``measure(said, truth) -> (B,)``, lower for a better fit."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def __call__(self, said: Prediction, truth: Prediction) -> Tensor:
        """One number a sample."""

    @property
    def nats(self) -> bool:
        """Whether the mean over uniform times, times the elements of a sample, is -log p up to a constant."""
        return False


@dataclass(frozen=True)
class OwnWeight(Weighting):
    """A weight of one's own on the error of whatever quantity is compared."""

    fn: Callable[[Level], Weight]

    def scaled(self, level: Level) -> Weight:
        raise BadValue("a weight of one's own is on the target, it has no fixed weight on x0")

    def on(self, kind: str, level: Level) -> Weight:
        return self.fn(level)


@dataclass(frozen=True, kw_only=True)
class Error(Measure):
    """The denoising error: ``w(t) d(said, true)``, the mean over the elements of a sample.

    Args:
        loss: ``"l2"``, ``"l1"``, ``"huber"`` or a :class:`~condiff.training.Distance`.
        target: the quantity that is compared, the noise as in Stable Diffusion; ``"velocity"`` for flows. Whatever the
            network predicts is converted to it.
        weight: ``"uniform"`` (1 at every level), ``"elbo"`` (the sum over elements is then the likelihood's own, in
            nats up to a constant), a :class:`~condiff.training.Weighting`, or a function of the level.

    Raises:
        BadValue: an unknown loss, target or weight; elbo with another loss than l2.
    """

    loss: str | Distance = "l2"
    target: str = "noise"
    weight: str | Weighting | Callable[[Level], Weight] = "uniform"

    def __post_init__(self) -> None:
        if self.target not in KINDS:
            raise unknown("prediction", self.target, KINDS)
        if isinstance(self.loss, str) and self.loss not in DISTANCES:
            raise unknown("loss", self.loss, DISTANCES)
        if isinstance(self.weight, str) and self.weight not in ("uniform", "elbo"):
            raise unknown("weight", self.weight, ("uniform", "elbo"))
        if self.weight == "elbo" and self.loss != "l2":
            raise BadValue(f"the likelihood's weight belongs to squared errors, not to loss={self.loss!r}")

    def __call__(self, said: Prediction, truth: Prediction) -> Tensor:
        return self._objective.field(self.target, said, truth, None)

    @property
    def nats(self) -> bool:
        return self.weight == "elbo"

    @property
    def _objective(self) -> Denoising:
        weights: dict[object, Weighting] = {"uniform": UniformWeight(), "elbo": ELBO()}
        if isinstance(self.weight, Weighting):
            chosen = self.weight
        else:
            chosen = weights[self.weight] if isinstance(self.weight, str) else OwnWeight(self.weight)
        return Denoising(target=self.target, loss=self.loss, weighting=chosen)


@dataclass(frozen=True, kw_only=True)
class Bound(Measure):
    """A step's term of the variational bound with the variance that the network learned, in bits per dimension:

    ``KL(q(x_s | x_t, x0) || p(x_s | x_t))`` from t to ``s = t - 1 / steps`` (Nichol & Dhariwal 2021), 0 for the step
    to t = 0, which has no such term.

    Args:
        steps: of the sampler whose variances were learned.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadValue(f"Bound needs steps >= 1, got {self.steps}")

    def __call__(self, said: Prediction, truth: Prediction) -> Tensor:
        if "variance" not in said.aux:
            raise Incompatible("Bound needs a network with a variance head (prediction.aux['variance'])")
        unit = LearnedVariance(steps=self.steps, weight=1.0 / self.steps)
        return unit(said, truth).flatten(1).mean(1) / math.log(2.0)


@dataclass(frozen=True)
class Total(Measure):
    """A sum of measures: ``Total((Error(), Bound()))`` decides by both."""

    parts: Sequence[Measure] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Measure) for part in self.parts):
            raise BadValue(f"Total takes measures, got {self.parts!r}")

    def __call__(self, said: Prediction, truth: Prediction) -> Tensor:
        return torch.stack([part(said, truth) for part in self.parts]).sum(0)
