"""Explicit Runge-Kutta rules on the probability-flow ODE in t."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.errors import unknown
from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State, velocity


class Tableau(NamedTuple):
    """Butcher tableau: nodes c, rows of A below the diagonal, weights b."""

    c: tuple[Weight, ...]
    a: tuple[tuple[Weight, ...], ...]
    b: tuple[Weight, ...]


TABLEAUS = {
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "ralston": Tableau((0.0, 2 / 3), ((), (2 / 3,)), (0.25, 0.75)),
    "rk3": Tableau((0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class Stage(NamedTuple):
    level: Level
    slopes: tuple[Weight, ...]  # of the stages before: x + sum_j slopes_j k_j is the stage's state


class Weights(NamedTuple):
    stages: tuple[Stage, ...]
    final: tuple[Weight, ...]
    dt: Weight


@dataclass(frozen=True)
class RungeKutta(Solver):
    """``k_j = velocity(x + dt sum_i a_ji k_i, t + c_j dt)``, ``x_s = x + dt sum_j b_j k_j``, ``dt = s - t``.

    Args:
        method: "midpoint", "heun", "ralston" (order 2, two evaluations), "rk3" (3, three), "rk4" (4, four).
        evaluate_end: whether the denoiser may be evaluated at a noise-free level, where the velocity doesn't follow
            from a prediction of x0. If not, a method with a stage there takes that step with Euler ("heun") or the
            midpoint rule ("rk3", "rk4").
    """

    method: str = "midpoint"
    evaluate_end: bool = False

    def __post_init__(self) -> None:
        if self.method not in TABLEAUS:
            raise unknown("Runge-Kutta method", self.method, TABLEAUS)

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        table, reserve = TABLEAUS[self.method], _reserve(self.method)
        out = []
        for t, s in itertools.pairwise(levels):
            plain = self.evaluate_end or 1.0 not in table.c
            at_end = False if plain else s.noise == 0.0
            if isinstance(at_end, Tensor):
                out.append(_weights(t, s, _mixed(at_end, reserve, table)))
            else:
                out.append(_weights(t, s, reserve if at_end else table))
        return out

    def step(self, x: Tensor, c: Weights, state: State, run: Any) -> tuple[Tensor, Prediction, Tensor | None]:
        first: Any = None
        slopes = []
        for stage in c.stages:
            y = combine((1.0, x), *zip(stage.slopes, slopes, strict=True))
            prediction = run.denoise(y, stage.level)
            first = first or prediction
            slopes.append(velocity(prediction, c.dt))
        x_s = combine((1.0, x), *zip(c.final, slopes, strict=True))
        return self.finish(x, x_s, 0.0, first, run)


def _reserve(method: str) -> Tableau:
    """The rule for a step whose end can't be evaluated, padded with idle stages to the method's number of them."""
    stages = len(TABLEAUS[method].c)
    if stages == 2:
        return Tableau((0.0, 0.0), ((), (0.0,)), (1.0, 0.0))
    idle = stages - 2
    rows = tuple((0.5,) + (0.0,) * (i + 1) for i in range(idle))
    return Tableau((0.0, 0.5) + (0.5,) * idle, ((), (0.5,), *rows), (0.0, 1.0) + (0.0,) * idle)


def _mixed(where: Tensor, a: Tableau, b: Tableau) -> Tableau:
    """A tableau of tensors: ``a`` where the mask says so, else ``b``."""

    def pick(x: Weight, y: Weight) -> Tensor:
        first, second = torch.tensor([x, y], dtype=torch.float64, device=where.device)
        return torch.where(where, first, second)

    rows = tuple(tuple(map(pick, p, q)) for p, q in zip(a.a, b.a, strict=True))
    return Tableau(tuple(map(pick, a.c, b.c)), rows, tuple(map(pick, a.b, b.b)))


def _weights(t: Level, s: Level, table: Tableau) -> Weights:
    """A tableau times the step; idle last stages are left out."""
    count = len(table.b)
    while not isinstance(table.b[count - 1], Tensor) and table.b[count - 1] == 0.0:
        count -= 1
    dt = s.t - t.t
    stages = []
    for node, row in zip(table.c[:count], table.a, strict=False):
        still = not isinstance(node, Tensor)
        level = t if still and node == 0.0 else s if still and node == 1.0 else t.process.at(t.t + node * dt)
        stages.append(Stage(level, tuple(w * dt for w in row)))
    return Weights(tuple(stages), tuple(w * dt for w in table.b[:count]), dt)
