"""Imputation: sample paths of what is missing inside series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from condiff.data import Series, WindowSpec
from condiff.data.windows import check_length, gather, sizes
from condiff.denoiser import Denoises
from condiff.errors import BadValue
from condiff.guidance import quantile_levels
from condiff.random import derive_seed
from condiff.series.paths import check_batch, check_members, path_each, refuse_told


@dataclass(frozen=True, eq=False)
class Imputation:
    """A series whose gaps are filled.

    Args:
        series: with its gaps.
        samples: float64 (S, n): the observed values as they are, and sample paths in the gaps.
    """

    series: Series
    samples: np.ndarray

    @property
    def filled(self) -> Series:
        """The series with the median of the samples in its gaps."""
        values = np.where(self.series.observed, self.series.values, np.median(self.samples, axis=0))
        return Series(self.series.item, self.series.start, self.series.freq, values)


def impute(
    denoiser: Denoises,
    items: Sequence[Series],
    spec: WindowSpec,
    *,
    members: int = 100,
    seed: int = 0,
    batch: int = 1024,
    **how: Any,
) -> list[Imputation]:
    """The gaps of each series, filled from both sides, window by window from the first gap on.

    A later window sees what its sample path was filled with before. In front of a series' start lags are unobserved.

    Args:
        denoiser: an unconditional model of such windows; a conditional one knows histories only.
        items: series, NaN where missing, at least a window long.
        spec, batch, how: as for :func:`condiff.series.forecast`.

    Raises:
        BadValue: a series shorter than a window, or without an observed value in a window with a gap; a conditional
            model.
    """
    refuse_told(denoiser, "impute")
    check_members(members)
    check_batch(batch)
    for one in items:
        check_length(one, WindowSpec(freq=spec.freq, horizon=spec.horizon, context=spec.context), spec.length)
    at_once, made = max(1, batch // members), []
    for first in range(0, len(items), at_once):
        some = items[first : first + at_once]
        filled = _filled(denoiser, some, spec, members, seed, {**how, "batch": batch})
        made += [Imputation(one, values.numpy()) for one, values in zip(some, filled, strict=True)]
    return made


def _filled(
    denoiser: Denoises, items: Sequence[Series], spec: WindowSpec, members: int, seed: int, how: Mapping[str, Any]
) -> list[Tensor]:
    """All sample paths of each series, (members, n): a window of every series that still has a gap, and again."""
    values = [torch.from_numpy(one.values).repeat(members, 1) for one in items]
    level = sizes(items)
    while left := [i for i, paths in enumerate(values) if not bool(paths[0].isfinite().all())]:
        starts = [_start(items[i], values[i][0], spec) for i in left]
        # A window for each path, since what they were filled with before differs.
        parts = torch.cat([_part(values[i], start, spec) for i, start in zip(left, starts, strict=True)])
        sizes_left = level[torch.tensor(left)].repeat_interleave(members)
        window = gather(parts, torch.full((len(parts),), spec.reach), spec, sizes_left)
        named = zip(left, starts, strict=True)
        seeds = [derive_seed(seed, items[i].item, start, j) for i, start in named for j in range(members)]
        found = path_each(denoiser, window, quantile_levels(members, len(left)), seeds, **how)
        for i, start, own in zip(left, starts, found.split(members), strict=True):
            there = values[i][:, start : start + spec.length]
            values[i][:, start : start + spec.length] = torch.where(there.isfinite(), there, own)
    return values


def _start(one: Series, path: Tensor, spec: WindowSpec) -> int:
    """Where the window begins that fills the first gap of a path: a quarter of it lies before the gap, where it can.

    Raises:
        BadValue: nothing is observed in it.
    """
    gap = int((~path.isfinite()).int().argmax())
    start = min(max(gap - spec.length // 4, 0), len(one) - spec.length)
    if not one.observed[start : start + spec.length].any():
        raise BadValue(f"{one.item}: nothing is observed in {spec.length} steps from {one.times(start, 1)[0]} on")
    return start


def _part(values: Tensor, start: int, spec: WindowSpec) -> Tensor:
    """What a window and its lags see, (members, reach + L), NaN in front of the series."""
    begin = start - spec.reach
    return pad(values[:, max(begin, 0) : start + spec.length], (max(-begin, 0), 0), value=torch.nan)
