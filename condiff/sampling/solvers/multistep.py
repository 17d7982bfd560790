"""The update that all linear multistep rules share: one combination of the present and of past evaluations."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Entry, Solver, State, repeats


class Columns(NamedTuple):
    """Weights for a whole grid, tensors (N, ...): of the present x0, noise and source, of past evaluations (newest
    first), of the fresh noise; and of x0 and noise alone, for a state that has lost its past."""

    x0: Tensor
    noise: Tensor
    source: Tensor
    past: list[Tensor]
    std: Tensor
    plain: tuple[Tensor, Tensor]


class Weights(NamedTuple):
    """The same for one step, and how many evaluations the steps after it need."""

    x0: Weight
    noise: Weight
    source: Weight
    past: tuple[Weight, ...]
    std: Weight
    plain: tuple[Weight, Weight]
    value: Weight  # 1, but 0 where the time repeats and the value need not exist
    keep: int


class Multistep(Solver):
    """Base: ``x_s = a x0 + b noise + c y + sum_j w_j value_j + std z``, ``value_j`` the evaluation j steps ago.

    Subclasses give :attr:`kind`, the quantity that is remembered, and :meth:`columns`. Where the state holds fewer
    evaluations than the rule wants (it was reset), the step falls back to its first-order part.
    """

    @property
    @abstractmethod
    def kind(self) -> str:
        """The quantity whose past values are combined."""

    @property
    def remembers(self) -> bool:
        return True

    @abstractmethod
    def columns(self, levels: Sequence[Level]) -> Columns:
        """The weights of all steps."""

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        c = self.columns(levels)
        depth = _depths(c.past) if c.past else [0] * (len(levels) - 1)
        keep = [*depth[1:], 0]  # the depth grows by at most one a step
        past = [_rows(w) for w in c.past]
        value = [_moving(t, s) for t, s in itertools.pairwise(levels)]
        std = _rows(c.std) if bool((c.std != 0.0).any()) else [0.0] * len(depth)
        rows = zip(*map(_rows, (c.x0, c.noise, c.source)), std, zip(*map(_rows, c.plain), strict=True), strict=True)
        return [
            Weights(x0, noise, source, tuple(w[i] for w in past[: depth[i]]), std, plain, value[i], keep[i])
            for i, (x0, noise, source, std, plain) in enumerate(rows)
        ]

    def advance(self, x: Tensor, prediction: Prediction, c: Weights, state: State) -> tuple[Tensor, Weight]:
        past = state.history
        if not c.past:
            mean = prediction.linear(c.x0, c.noise, c.source)
        elif len(past) < len(c.past):
            mean = prediction.linear(*c.plain, c.source)
        else:
            mean = prediction.linear(c.x0, c.noise, c.source)
            mean = combine((1.0, mean), *((w, e.value) for w, e in zip(c.past, past, strict=False)))
        if c.keep:
            moving = isinstance(c.value, Tensor)
            value = prediction.linear(**{self.kind: c.value}) if moving else prediction.to(self.kind)
            state.push(Entry(x, value, prediction.level), c.keep)
        return mean, c.std


def _moving(t: Level, s: Level) -> Weight:
    same = repeats(t, s)
    return torch.where(same, 0.0, 1.0).double() if isinstance(same, Tensor) else 1.0


def _rows(column: Tensor) -> list[Any]:
    """One number per step, or one tensor per step."""
    return column.tolist() if column.ndim == 1 else list(column.unbind(0))


def _depths(past: Sequence[Tensor]) -> list[int]:
    """For every step, how many past evaluations have a weight."""
    used = torch.stack([(w != 0.0).flatten(1).any(1) if w.ndim > 1 else w != 0.0 for w in past])
    count = torch.arange(1, len(past) + 1)[:, None]
    return torch.where(used.cpu(), count, 0).amax(0).tolist()
