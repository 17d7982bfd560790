"""Time grids: explicit lists of levels, from the first (noise) to the last (data).

A :class:`Grid` turns a number of steps into float64 times (steps + 1,). Any list of times may be given to the
samplers instead, also one that goes up again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process.gaussian import Process


class Grid(ABC):
    """Base: ``times(process, steps)`` gives ``steps + 1`` times."""

    @abstractmethod
    def times(self, process: Process, steps: int) -> Tensor:
        """float64 times from the start to the end, (steps + 1,)."""


def _check_ends(start: float, end: float) -> None:
    if not (0.0 <= end <= 1.0 and 0.0 <= start <= 1.0 and start != end):
        raise BadValue(f"a grid runs between two different times in [0, 1], got start={start}, end={end}")


@dataclass(frozen=True)
class Uniform(Grid):
    """Evenly spaced in t."""

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end)

    def times(self, process: Process, steps: int) -> Tensor:
        return torch.linspace(self.start, self.end, steps + 1, dtype=torch.float64)
