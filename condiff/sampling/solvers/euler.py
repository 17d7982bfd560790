"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State, velocity


@dataclass(frozen=True)
class Euler(Solver):
    """``x_s = x_t + (s - t) velocity(x_t, t)``. First order.

    Euler's method in ``sigma = noise / data`` (EDM, k-diffusion) is :class:`DDIM`; on a rectified path the two agree.
    """

    def plan(self, levels: Sequence[Level]) -> list[Weight]:
        return [s.t - t.t for t, s in itertools.pairwise(levels)]

    def advance(self, x: Tensor, prediction: Prediction, c: Weight, state: State) -> tuple[Tensor, Weight]:
        return combine((1.0, x), (c, velocity(prediction, c))), 0.0
