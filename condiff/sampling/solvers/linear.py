"""Rules whose mean is one combination of what is predicted: ``x_s = a x0 + b noise + c y + std z``.

DDIM, ancestral sampling, Euler in sigma, Euler-Maruyama and consistency steps differ only in these four weights.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from condiff.process.algebra import Weight
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State


class Weights(NamedTuple):
    """The weights of a step."""

    x0: Weight
    noise: Weight
    source: Weight
    std: Weight


class Linear(Solver):
    """Base: one evaluation, one combination. Subclasses give :meth:`weights`."""

    @abstractmethod
    def weights(self, t: Level, s: Level) -> Weights:
        """The weights of the step from t to s."""

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        return [self.weights(t, s) for t, s in itertools.pairwise(levels)]

    def advance(self, x: Tensor, prediction: Prediction, c: Weights, state: State) -> tuple[Tensor, Weight]:
        return prediction.linear(c.x0, c.noise, c.source), c.std
