"""Level: a time together with a process's coefficients there, worked out once in float64.

Per grid when sampling, per batch when training. Numbers for one common time, else tensors over the leading
dimensions of the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.process import algebra
from condiff.process.algebra import Weight
from condiff.process.schedule import as_time


class Level(NamedTuple):
    """A time and the coefficients ``x_t = data x0 + source y + noise z`` there.

    Numbers for one common time, else float64 tensors of t's shape.
    """

    t: Weight
    data: Weight
    source: Weight
    noise: Weight
    d_data: Weight
    d_source: Weight
    d_noise: Weight
    process: Any  # the Process that made it

    @property
    def log_snr(self) -> Weight:
        """``log(data^2 / noise^2)``; ``+-inf`` where one of them is 0."""
        return 2.0 * (algebra.log(self.data) - algebra.log(self.noise))

    @property
    def model_time(self) -> Weight:
        """What a released network is told: :meth:`Process.model_time` of t."""
        return self._told(self.process.model_time)

    @property
    def network_time(self) -> Weight:
        """What a network made here is told: :meth:`Process.network_time` of t, in [0, 1]."""
        return self._told(self.process.network_time)

    def _told(self, rule: Any) -> Weight:
        time = rule(torch.as_tensor(self.t, dtype=torch.float64))
        return time if isinstance(self.t, Tensor) else float(time)

    def rows(self, index: Any) -> Level:
        """The level of a subset of the batch."""

        def pick(w: Weight) -> Weight:
            if not isinstance(w, Tensor) or w.ndim == 0:
                return w
            return w[index.to(w.device) if isinstance(index, Tensor) else index]

        return Level._make((*(pick(w) for w in self[:-1]), self.process))


Time = float | Tensor | Level


def stack_levels(levels: Sequence[Level]) -> Level:
    """Scalar levels of one process -> one level with tensors of shape ``(N,)``."""
    columns = zip(*(level[:-1] for level in levels), strict=True)
    return Level._make((*(torch.tensor(c, dtype=torch.float64) for c in columns), levels[0].process))


def level_at(kind: Any, process: Any, t: Any) -> Any:
    """The level of a process at ``t``, of the given kind: a level of this process as it is, else its curves there.

    A number gives numbers; a tensor, or a list of times, gives float64 tensors of its shape.

    Raises:
        BadValue: when ``t`` lies outside [0, 1].
    """
    if isinstance(t, kind):
        if t.process is process or t.process == process:
            return t
        t = t.t
    times = as_time(t)
    curves = process.curves(times)
    if times.ndim == 0 and not isinstance(t, Tensor):
        return kind._make((float(t), *(float(c) for c in curves), process))
    return kind._make((times, *curves, process))


def levels_on(kind: Any, process: Any, grid: Tensor) -> list[Any]:
    """One level per row of a grid ``(N,)`` (numbers) or ``(N, ...)`` (tensors), all worked out at once."""
    times = as_time(grid, "grid")
    curves = (times, *process.curves(times))
    rows = [c.tolist() if times.ndim == 1 else c.unbind(0) for c in curves]
    return [kind._make((*row, process)) for row in zip(*rows, strict=True)]
