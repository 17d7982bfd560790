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
