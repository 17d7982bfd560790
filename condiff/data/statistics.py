"""Mean and variance of data that doesn't fit in memory, in one pass and in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.data.base import Data
from condiff.errors import BadValue, unknown


class Statistics:
    """Running mean and variance, one per element (or per channel: axis 1), by Chan, Golub & LeVeque (1983).

    ``M2_ab = M2_a + M2_b + (mean_b - mean_a)^2 n_a n_b / (n_a + n_b)`` loses no digits to cancellation.
    """

    def __init__(self, per: str = "channel") -> None:
        if per not in ("channel", "element", "all"):
            raise unknown("statistics per", per, ("channel", "element", "all"))
        self.per, self.count = per, 0
        self.mean = self._m2 = torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor) -> Statistics:
        """Count in a batch (B, ...)."""
        x = x.detach().double()
        if self.per == "channel":
            x = x.movedim(1, -1).flatten(0, -2)
        elif self.per == "all":
            x = x.flatten()
        mean = x.mean(dim=0)
        return self._merge(len(x), mean, (x - mean).square().sum(dim=0))

    def merge(self, other: Statistics) -> Statistics:
        """Count in what another process saw."""
        return self._merge(other.count, other.mean, other._m2)

    def _merge(self, count: int, mean: Tensor, m2: Tensor) -> Statistics:
        if count:
            total, delta = self.count + count, mean - self.mean
            self._m2 = self._m2 + m2 + delta.square() * (self.count * count / total)
            self.mean = self.mean + delta * (count / total)
            self.count = total
        return self

    @property
    def var(self) -> Tensor:
        """Population variance."""
        if not self.count:
            raise BadValue("statistics of nothing: call update() first")
        return self._m2 / self.count

    @property
    def std(self) -> Tensor:
        return self.var.sqrt()


def statistics(data: Data, per: str = "channel", batch: int = 256) -> Statistics:
    """Mean and variance over all rows of a data set."""
    out = Statistics(per)
    for rows in torch.arange(len(data)).split(batch):
        out.update(data.batch(rows)["x"])
    return out
