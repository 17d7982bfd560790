"""Time grids: explicit lists of levels, from the first (noise) to the last (data).

A :class:`Grid` turns a number of steps into float64 times (steps + 1,). Any list of times may be given to the
samplers instead, also one that goes up again. Grids in sigma and log-SNR are in :mod:`condiff.sampling.sigmas`, those
of numbered levels in :mod:`condiff.sampling.spacing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.fields import checked
from condiff.process.gaussian import Process


class Grid(ABC):
    """Base: ``times(process, steps)`` gives ``steps + 1`` times."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def times(self, process: Process, steps: int) -> Tensor:
        """float64 times from the start to the end, (steps + 1,)."""

    def starting(self, start: float, process: Process) -> Grid:
        """The same rule between ``start`` and the same end, with as many steps (SDEdit, Analytic-Init, teleportation).

        Raises:
            BadValue: a start outside (0, 1].
            Incompatible: a grid that has no start to choose.
        """
        raise Incompatible(f"{self} has no start to choose: use Uniform(start=...), or list the times")


def with_clean_end(points: Tensor) -> Tensor:
    """The points, then t = 0."""
    return torch.cat([points, torch.zeros(1, dtype=torch.float64)])


def check_start_time(start: float) -> float:
    """
    Raises:
        BadValue: a start of a grid outside (0, 1].
    """
    if isinstance(start, bool) or not isinstance(start, int | float) or not 0.0 < start <= 1.0:
        raise BadValue(f"a grid starts at a time in (0, 1], got {start!r}")
    return float(start)


def _check_ends(start: float, end: float, clean: bool) -> None:
    if not (0.0 <= end <= 1.0 and 0.0 <= start <= 1.0 and start != end):
        raise BadValue(f"a grid runs between two different times in [0, 1], got start={start}, end={end}")
    if clean and not 0.0 < end < start:
        raise BadValue(f"clean=True adds a last step to t = 0, after an end with 0 < end < start; got end={end}")


@dataclass(frozen=True)
class Uniform(Grid):
    """Evenly spaced in t.

    With ``clean`` the even steps lead to ``end`` and one more leads from there to t = 0.
    """

    start: float = 1.0
    end: float = 0.0
    clean: bool = False

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.clean)

    def times(self, process: Process, steps: int) -> Tensor:
        if self.clean:
            return with_clean_end(torch.linspace(self.start, self.end, steps, dtype=torch.float64))
        return torch.linspace(self.start, self.end, steps + 1, dtype=torch.float64)

    def starting(self, start: float, process: Process) -> Uniform:
        return replace(self, start=check_start_time(start))


@dataclass(frozen=True)
class Power(Grid):
    """``t = (end^(1/p) + u (start^(1/p) - end^(1/p)))^p`` with u even: quadratic for p = 2 (DDIM), dense near the data.

    With ``clean`` one more step leads from ``end`` to t = 0.
    """

    exponent: float = 2.0
    start: float = 1.0
    end: float = 0.0
    clean: bool = False

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.clean)
        if not self.exponent > 0.0:
            raise BadValue(f"exponent must be > 0, got {self.exponent}")

    def times(self, process: Process, steps: int) -> Tensor:
        count = steps if self.clean else steps + 1
        root = 1.0 / self.exponent
        points = torch.linspace(self.start**root, self.end**root, count, dtype=torch.float64) ** self.exponent
        points[0] = self.start
        if count > 1:
            points[-1] = self.end
        return with_clean_end(points) if self.clean else points

    def starting(self, start: float, process: Process) -> Power:
        return replace(self, start=check_start_time(start))


@dataclass(frozen=True)
class Shifted(Grid):
    """Another grid's times moved towards noise: ``t -> shift t / (1 + (shift - 1) t)`` (Esser 2024, eq. 23).

    For rectified-flow models whose process has no shift of its own: SD3 samples with shift 3, FLUX with
    :func:`resolution_shift`. It leaves 0 and 1 where they are.
    """

    shift: float = 3.0
    grid: Grid = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise BadValue(f"shift must be > 0, got {self.shift}")

    def times(self, process: Process, steps: int) -> Tensor:
        t = self.grid.times(process, steps)
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def starting(self, start: float, process: Process) -> Shifted:
        start = check_start_time(start)
        before = start / (self.shift - (self.shift - 1.0) * start)
        return replace(self, grid=self.grid.starting(min(before, 1.0), process))
