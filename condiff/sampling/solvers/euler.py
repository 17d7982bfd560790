"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State


@dataclass(frozen=True)
class Euler(Solver):
    """``x_s = x_t + (s - t) velocity(x_t, t)``. First order."""

    def plan(self, levels: Sequence[Level]) -> list[Weight]:
        return [s.t - t.t for t, s in zip(levels[:-1], levels[1:], strict=True)]

    def advance(self, x: Tensor, prediction: Prediction, c: Weight, state: State) -> tuple[Tensor, Weight]:
        return combine((1.0, x), (c, prediction.velocity)), 0.0
