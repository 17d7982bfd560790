"""Adams-Bashforth rules on the probability-flow ODE in t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Entry, Solver, State, velocity
from condiff.sampling.solvers import exponential
from condiff.sampling.solvers.dpm import check_order


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """``x_s = x_t + sum_j w_j velocity_j``: the velocity as the polynomial in t through its last values, integrated.

    One evaluation a step; for flow models, whose velocity is smooth in t.
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @property
    def remembers(self) -> bool:
        return self.order > 1

    def plan(self, levels: Sequence[Level]) -> list[tuple[Weight, tuple[Weight, ...]]]:
        h = exponential.columns(levels).t.diff(dim=0)
        nodes = [torch.zeros_like(h)]
        for j in range(1, self.order):
            nodes.append(nodes[-1] - exponential.back(h, j))
        integrals = exponential.newton(nodes, [h ** (j + 1) / (j + 1) for j in range(self.order)])
        extra = exponential.corrections(nodes, integrals, exponential.reach(h, self.order - 1))
        extra[0] = extra[0] + h
        rows = [w.tolist() if h.ndim == 1 else list(w.unbind(0)) for w in extra]
        return list(zip(h.tolist() if h.ndim == 1 else h.unbind(0), zip(*rows, strict=True), strict=True))

    def advance(self, x: Tensor, prediction: Prediction, c: Any, state: State) -> tuple[Tensor, Weight]:
        step, weights = c
        state.push(Entry(x, velocity(prediction, step), prediction.level), self.order)
        values = [entry.value for entry in state.history]
        if len(values) < len(weights) and not _silent(weights[len(values) :]):
            weights = (step,)  # a state that has lost its past: Euler
        return combine((1.0, x), *zip(weights, values, strict=False)), 0.0


def _silent(weights: Sequence[Weight]) -> bool:
    return not any(bool((w != 0.0).any()) if isinstance(w, Tensor) else w != 0.0 for w in weights)
