"""Imputation: sample paths of what is missing inside series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from condiff.data import Series, WindowSpec
from condiff.data.windows import check_length, gather, sizes
from condiff.denoiser import Denoises
from condiff.errors import BadValue
from condiff.guidance import quantile_levels
from condiff.random import derive_seed
from condiff.series.paths import check_members, path_each, refuse_told


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
    **how: Any,
) -> list[Imputation]:
    """The gaps of each series, filled from both sides, window by window from the first gap on.

    A later window sees what its sample path was filled with before. In front of a series' start lags are unobserved.

    Args:
        denoiser: an unconditional model of such windows; a conditional one knows histories only.
        items: series, NaN where missing, at least a window long.
        spec, how: as for :func:`condiff.series.forecast`.

    Raises:
        BadValue: a series shorter than a window, or without an observed value in a window with a gap; a conditional
            model.
    """
    refuse_told(denoiser, "impute")
    check_members(members)
    for one in items:
        check_length(one, WindowSpec(freq=spec.freq, horizon=spec.horizon, context=spec.context), spec.length)
    return [Imputation(one, _filled(denoiser, one, spec, members, seed, how).numpy()) for one in items]


def _filled(
    denoiser: Denoises, one: Series, spec: WindowSpec, members: int, seed: int, how: Mapping[str, Any]
) -> torch.Tensor:
    """All sample paths of a series, (members, n)."""
    values = torch.from_numpy(one.values).repeat(members, 1)
    level = sizes([one])
    while bool((gaps := ~values[0].isfinite()).any()):
        start = min(max(int(gaps.int().argmax()) - spec.length // 4, 0), len(one) - spec.length)
        inside = slice(start, start + spec.length)
        if not one.observed[inside].any():
            raise BadValue(f"{one.item}: nothing is observed in {spec.length} steps from {one.times(start, 1)[0]} on")
        # A window for each path, since what they were filled with before differs.
        window = gather(values, torch.full((members,), start), spec, level.expand(members))
        seeds = [derive_seed(seed, one.item, start, j) for j in range(members)]
        found = path_each(denoiser, window, quantile_levels(members), seeds, **how)
        values[:, inside] = torch.where(values[:, inside].isfinite(), values[:, inside], found)
    return values
