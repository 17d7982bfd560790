"""Steps up: a grid that goes back to more noise inside a generation (RePaint, Lugmayr 2022; restart sampling)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.errors import Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight, combine, match
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State


class Weights(NamedTuple):
    inner: Any
    up: bool | Tensor
    ratio: Weight
    std: Weight
    source: Weight


@dataclass(frozen=True)
class Renoise(Solver):
    """Downwards the given rule; upwards a draw from the forward kernel, ``x_s = ratio x_t + std z`` (and the endpoint).

    A step that goes up for all entries calls no network. The samplers use this by default for stochastic rules
    (``up="renoise"``).
    """

    solver: Solver

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def remembers(self) -> bool:
        return self.solver.remembers

    @property
    def relative_noise(self) -> float | None:
        return self.solver.relative_noise  # of the steps down

    def check(self, denoiser: Any, x: Any) -> None:
        self.solver.check(denoiser, x)

    def start(self) -> State:
        return self.solver.start()

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        out = []
        for inner, t, s in zip(self.solver.plan(levels), levels[:-1], levels[1:], strict=True):
            up = s.t > t.t
            ratio, std = t.process.kernel(t, s)
            ratio, std = algebra.where(up, ratio, 1.0), algebra.where(up, std, 0.0)
            if _any(algebra.where(up, abs(s.data - ratio * t.data), 0.0) > 1e-9):
                raise Incompatible(
                    f"going up from t = {t.t} needs the clean sample: {t.process} has kernels of its own"
                )
            out.append(Weights(inner, up, ratio, std, s.source - ratio * t.source))
        return out

    def step(self, x: Tensor, c: Weights, state: State, run: Any) -> tuple[Tensor, Prediction | None, Tensor | None]:
        if not isinstance(c.up, Tensor):
            return self._up(x, c, run, run.draw(x)) if c.up else self.solver.step(x, c.inner, state, run)
        # One draw per step for every row, so that a row's noise doesn't depend on where the others go.
        down, prediction, noise = self.solver.step(x, c.inner, state, run)
        raised, _, noise = self._up(x, c, run, run.draw(x) if noise is None else noise)
        return torch.where(match(c.up, x).bool(), raised, down), prediction, noise

    def _up(self, x: Tensor, c: Weights, run: Any, noise: Tensor) -> tuple[Tensor, None, Tensor]:
        terms = [(c.ratio, x), (c.std, noise)]
        if run.denoiser.process.has_source:
            terms.append((c.source, run.cond.source))
        return combine(*terms), None, noise


UP = ("renoise", "integrate")


def directed(solver: Solver, levels: Sequence[Level], up: str | None) -> Solver:
    """The rule for a grid that may go up: as ``up`` says; by default stochastic rules renoise, others integrate.

    Raises:
        BadValue: an unknown ``up``.
    """
    if up is not None and up not in UP:
        raise unknown("way up", up, UP)
    if up == "integrate" or (up is None and not solver.stochastic) or isinstance(solver, Renoise):
        return solver
    rises = (s.t > t.t for t, s in itertools.pairwise(levels))
    return Renoise(solver) if any(map(_any, rises)) else solver


def _any(condition: bool | Tensor) -> bool:
    return bool(condition.any()) if isinstance(condition, Tensor) else condition
