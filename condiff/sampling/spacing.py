"""Numbered levels: which indices of a table of N levels a grid of few steps visits.

The three spacings are those of Lin et al. 2023 (2305.08891), table 2, as diffusers has them: whole indices, rounded
half to even from real positions, never stepped by a rounded stride. Index i is the time ``(i + 1) / N``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.gaussian import Process
from condiff.process.table import table_size
from condiff.sampling.grid import Grid, check_start_time, with_clean_end

SPACINGS = ("trailing", "leading", "linspace", "quadratic")
LAST = ("clean", "first")


@dataclass(frozen=True)
class Spaced(Grid):
    """Indices of the process's table.

    Args:
        spacing: ``"trailing"`` counts from the last index down, so that sampling starts at pure noise;
            ``"leading"`` counts up from 0 (it never visits the last levels); ``"linspace"`` includes both ends;
            ``"quadratic"`` is dense near the data, ``floor((i / (S - 1))^2 (N - N / S))`` (DDIM, Song 2021), with fewer
            steps where indices repeat.
        offset: added to the indices of "leading" (1 for Stable Diffusion).
        last: the level after the last index: ``"clean"`` (t = 0) or ``"first"``, the first tabulated one
            (``set_alpha_to_one=False``, ``final_sigmas_type="sigma_min"``).
        one_more: space one more index and leave out the lowest, as diffusers' DPM-Solver and UniPC do for "leading"
            and "linspace".
    """

    spacing: str = "trailing"
    offset: int = 0
    last: str = "clean"
    one_more: bool = False
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise unknown("spacing", self.spacing, SPACINGS)
        if self.last not in LAST:
            raise unknown("last level", self.last, LAST)
        if isinstance(self.offset, bool) or not isinstance(self.offset, int):
            raise BadType(f"offset must be an integer, got {self.offset!r}")
        if self.offset < 0 or (self.offset and self.spacing != "leading"):
            raise BadValue(f"offset is a number >= 0 for spacing='leading', got {self.offset} for {self.spacing!r}")
        if self.one_more and self.spacing in ("trailing", "quadratic"):
            raise BadValue("one_more belongs to spacing='leading' and 'linspace'")
        check_start_time(self.start)

    def starting(self, start: float, process: Process) -> Spaced:
        _first_levels(_table(process), start)
        return replace(self, start=start)

    def indices(self, process: Process, steps: int) -> Tensor:
        """The indices at which the denoiser is evaluated, from high to low, int64 (steps,).

        Raises:
            Incompatible: a process without a table.
            BadValue: more steps than the table has levels, an offset that leads out of it, a start between two levels.
        """
        total = _first_levels(_table(process), self.start)
        count = steps + 1 if self.one_more else steps
        if count > total:
            raise BadValue(f"{steps} steps on a table of {total} levels with {self}")
        if self.spacing == "trailing":
            positions = [total - i * total / steps for i in range(steps)]
            out = [round(p) - 1 for p in positions]
        elif self.spacing == "leading":
            stride = total // count
            out = [i * stride + self.offset for i in reversed(range(count))][:steps]
        elif self.spacing == "quadratic":
            out = sorted({i * i * total // max(steps * (steps - 1), 1) for i in range(steps)}, reverse=True)
        else:
            out = [round(i * (total - 1) / max(count - 1, 1)) for i in reversed(range(count))][:steps]
        if not 0 <= out[-1] <= out[0] < total:
            raise BadValue(f"{self} visits the indices {out[0]} .. {out[-1]} of a table of {total} levels")
        return torch.tensor(out)

    def times(self, process: Process, steps: int) -> Tensor:
        total = _table(process)
        last = -1 if self.last == "clean" else 0
        return (torch.cat([self.indices(process, steps), torch.tensor([last])]).double() + 1.0) / total


def _first_levels(total: int, start: float) -> int:
    """How many levels of a table lie up to a start."""
    levels = round(check_start_time(start) * total)
    if levels < 1 or abs(levels - start * total) > 1e-6:
        near = [k / total for k in (levels - 1, levels, levels + 1) if 1 <= k <= total]
        raise BadValue(f"start={start} lies between the levels of a table of {total}: use one of {near}")
    return levels


@dataclass(frozen=True)
class Strided(Grid):
    """Every k-th index of the process's table from the last down, then 1, 0 and a step to t = 0 (BBDM, Li 2023).

    Of S steps the first S - 2 are at ``(N - 1) (S - 2 - k) div (S - 2)``, k = 0 ... S - 3, in whole numbers (a stride
    in floating point is off by one for some S). Where these come to 1 by themselves there is a step less.
    """

    def indices(self, process: Process, steps: int) -> Tensor:
        """The indices at which the denoiser is evaluated, from high to low, int64.

        Raises:
            Incompatible: a process without numbered levels. BadValue: fewer than 3 steps, or more than levels.
        """
        last = _numbered(process).steps - 1
        if not 3 <= steps <= last + 1:
            raise BadValue(f"{self} needs 3 to {last + 1} steps on a table of {last + 1} levels, got {steps}")
        out = [last * (steps - 2 - k) // (steps - 2) for k in range(steps - 2)]
        return torch.tensor([i for i in out if i > 1] + [1, 0])

    def times(self, process: Process, steps: int) -> Tensor:
        return with_clean_end(_numbered(process).at_index(self.indices(process, steps)))


def _numbered(process: Process) -> Any:
    """The table of a process: what knows the time of an index."""
    for table in (getattr(process, "schedule", None), process):
        if getattr(table, "steps", None) is not None and hasattr(table, "at_index"):
            return table
    raise Incompatible(f"{process} has no numbered levels: a Discrete schedule and Bridge.bbdm() have them")


def _table(process: Process) -> int:
    total = table_size(process)
    if total is None:
        raise Incompatible(
            f"{process} has no table of numbered levels; Spaced is for one with a Discrete schedule. "
            "Use Uniform, Karras or UniformLogSNR."
        )
    return total


def resolution_shift(
    tokens: int, *, base: tuple[int, float] = (256, 0.5), highest: tuple[int, float] = (4096, 1.15)
) -> float:
    """``exp(mu)`` with mu linear in the number of image tokens: FLUX's shift for :class:`Shifted`.

    Args:
        tokens: tokens of the latent image (a 1024 x 1024 picture has 4096).
        base, highest: two points (tokens, mu) of the line.
    """
    (x0, y0), (x1, y1) = base, highest
    if tokens < 1 or x0 == x1:
        raise BadValue(f"tokens must be >= 1 and the two points different, got {tokens}, {base}, {highest}")
    return math.exp(y0 + (tokens - x0) * (y1 - y0) / (x1 - x0))
