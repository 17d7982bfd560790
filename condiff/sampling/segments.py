"""Segments: which variable of a joint state moves when, as one schedule of rows.

Conditional, inverse, joint and coarse-to-fine generation by one model are four schedules (UniCon, Li 2025). A segment
gives each variable an interval (l, r) of its way from noise (0) to data (1), which it goes through while the segment
lasts; (1, 1) is a variable that is given, (0.7, 0.7) one that stays at a noisy level::

    Segments([{"image": (0, 1), "depth": (1, 1)}])          the image of a depth map
    Segments([{"image": (0, 1), "depth": (0, 1)}])          both together
    Segments([{"image": (0, 1), "depth": (0.7, 0.7)}])      an image that follows a depth map coarsely
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, unknown
from condiff.fields import checked
from condiff.process.joint import Joint
from condiff.sampling.grid import Grid, Uniform

Interval = tuple[float, float]


@dataclass(frozen=True)
@checked
class Segments:
    """A grid per variable of a joint process: ``sample(model, grid=Segments([...]), steps=50, ...)``.

    ``steps`` is N, the steps of a variable that goes all the way, whose times are tau_0 > ... > tau_N. With
    ``l* = int(l (N - 1))`` and ``r* = int(r (N - 1))`` a segment has ``n = max(r* - l* + 1)`` rows over the variables,
    and in row i a variable is at ``l* + int((r* - l* + 1) i / n)``. A segment begins where the last one ended, and its
    first row, the same, is left out. From the last row every variable steps to tau_N.

    Args:
        segments: name -> (l, r), for each variable in each segment.
        grid: the times: a rule, or N + 1 of them.
        clean: variables at (1, 1) throughout that are held at tau_N itself, bit for bit. The others wait at tau_(N-1)
            and step with everything else at the end, which networks that were never told a clean state need.

    Raises:
        BadValue: intervals outside of 0 <= l <= r <= 1, other names in another segment, every variable given, a jump
            between segments; a clean variable that moves.
    """

    segments: tuple[Mapping[str, Interval], ...]
    grid: Grid | tuple[float, ...] = field(default_factory=Uniform)
    clean: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.segments, Mapping):
            raise BadType(f"segments are a list of dictionaries, got {self.segments!r}")
        parts = tuple({name: tuple(way) for name, way in part.items()} for part in self.segments)
        object.__setattr__(self, "segments", parts)
        object.__setattr__(self, "clean", tuple(self.clean))
        if not isinstance(self.grid, Grid):
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
        if not parts or not parts[0]:
            raise BadValue("a schedule needs at least one segment, and a variable in it")
        for part in parts:
            if set(part) != set(parts[0]):
                raise BadValue(f"all segments have the variables {sorted(parts[0])}, got {sorted(part)}")
            for name, way in part.items():
                if len(way) != 2 or not 0.0 <= way[0] <= way[1] <= 1.0:
                    raise BadValue(f"{name!r} needs an interval (l, r) with 0 <= l <= r <= 1, got {way}")
        given = [n for n in parts[0] if all(part[n] == (1.0, 1.0) for part in parts)]
        if len(given) == len(parts[0]):
            raise BadValue(f"nothing is left to sample: {', '.join(given)} are all given")
        for name in self.clean:
            if name not in given:
                raise BadValue(f"only a variable at (1, 1) throughout is clean, and {name!r} isn't: {given}")

    @classmethod
    def between(
        cls,
        variables: Sequence[str],
        start: Mapping[str, float] | None = None,
        hold: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Segments:
        """One segment, in which all variables go from noise to data, but those of ``start`` from there, and those of
        ``hold`` stay where they are; 1 is a given variable.

        Raises:
            BadValue: a name that isn't among the variables, or in both.
        """
        start, hold = dict(start or {}), dict(hold or {})
        for name in (*start, *hold):
            if name not in variables:
                raise unknown("variable", name, variables)
            if name in start and name in hold:
                raise BadValue(f"{name!r} either starts somewhere or stays there, not both")
        stays = {name: (value, value) for name, value in hold.items()}
        return cls(({name: stays.get(name, (start.get(name, 0.0), 1.0)) for name in variables},), **options)

    @property
    def variables(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.segments[0])

    def rows(self, steps: int) -> dict[str, list[int]]:
        """The index of each variable in each row.

        Raises:
            BadValue: fewer than one step; segments that aren't continuous in every variable.
        """
        if steps < 1:
            raise BadValue(f"steps must be at least 1, got {steps}")
        out: dict[str, list[int]] = {name: [] for name in self.variables}
        for number, part in enumerate(self.segments):
            ends = {name: (int(low * (steps - 1)), int(high * (steps - 1))) for name, (low, high) in part.items()}
            n = max(high - low + 1 for low, high in ends.values())
            for name, (low, high) in ends.items():
                rows = [low + int((high - low + 1) * i / n) for i in range(n)]
                if out[name] and out[name][-1] != rows[0]:
                    raise BadValue(
                        f"{name!r} jumps between segments {number} and {number + 1}: from index {out[name][-1]} of "
                        f"{steps - 1} to {rows[0]}"
                    )
                out[name] += rows[1:] if out[name] else rows
        return out

    def grids(self, process: Joint, steps: int | None = None) -> dict[str, Tensor]:
        """The times of each variable, all of one length.

        Args:
            steps: left out where the times are listed.

        Raises:
            BadValue: variables that aren't those of the process; no steps, or steps beside listed times.
        """
        process.check("the segments", self.segments[0])
        steps = self._steps(steps)
        rows, out = self.rows(steps), {}
        for name in process:
            times = self._times(process[name], steps)
            index = [steps] * len(rows[name]) if name in self.clean else rows[name]
            out[name] = times[torch.tensor([*index, steps])]
        return out

    def _steps(self, steps: int | None) -> int:
        if isinstance(self.grid, Grid) == (steps is None):
            raise BadValue("give steps=, the number of steps of a variable that goes all the way, or a list of times")
        return len(self.grid) - 1 if steps is None else steps  # type: ignore[arg-type]

    def _times(self, process: Any, steps: int) -> Tensor:
        if isinstance(self.grid, Grid):
            return self.grid.times(process, steps)
        return torch.tensor(self.grid, dtype=torch.float64)
