"""Forecasts: sample paths of the steps behind the end of a series."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from condiff.data import Series, WindowSpec
from condiff.data.series import period_of
from condiff.data.windows import Window, check_length, gather, sizes
from condiff.denoiser import Denoises
from condiff.errors import BadValue, require_extra
from condiff.metrics import sample_quantiles
from condiff.series.paths import paths
from condiff.typing import Float, Tensor


@dataclass(frozen=True, eq=False)
class Forecast:
    """Sample paths of what comes behind a series.

    Args:
        item: name of the series.
        times: timestamps (a DatetimeIndex) of the horizon.
        freq: of the series.
        samples: float64 (S, H).
    """

    item: str
    times: Any
    freq: str
    samples: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Of the samples, (H,)."""
        return self.samples.mean(axis=0)

    def quantile(self, level: float) -> np.ndarray:
        """Of the samples, (H,): the one of the nearest rank, as in GluonTS."""
        return sample_quantiles(torch.from_numpy(self.samples), [level])[0].numpy()

    def to_gluonts(self) -> Any:
        """A ``gluonts.model.forecast.SampleForecast``, which GluonTS's evaluator takes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a faster package for JSON isn't there
            module = require_extra("gluonts.model.forecast", "series")
        start = period_of(self.times[0], self.freq)
        return module.SampleForecast(samples=self.samples, start_date=start, item_id=self.item)


def check_forecastable(items: Sequence[Series], spec: WindowSpec, horizon: int | None) -> int:
    """The horizon, after the series were found fit.

    Raises:
        BadValue: no series; one shorter than context and lags, of another frequency, or with nothing observed in its
            context; a horizon longer than that of the training.
    """
    horizon = spec.horizon if horizon is None else horizon
    if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= spec.horizon:
        raise BadValue(f"the model was trained to forecast 1 to {spec.horizon} steps, got {horizon!r}")
    if not items:
        raise BadValue("there are no series")
    for one in items:
        check_length(one, spec, spec.context)
        if not one.observed[-spec.context :].any():
            raise BadValue(f"{one.item}: nothing is observed in the context, its last {spec.context} steps")
    return horizon


def last_window(items: Sequence[Series], spec: WindowSpec) -> Window:
    """The windows whose horizons lie behind the ends of the series, unobserved."""
    ahead = torch.full((len(items), spec.horizon), torch.nan, dtype=torch.float64)
    return window_of(torch.cat([tails(items, spec), ahead], dim=1), spec, sizes(items))


def tails(items: Sequence[Series], spec: WindowSpec) -> Float[Tensor, "items steps"]:
    """The last steps of each series that a forecast looks at: its context, and what lags reach before it."""
    steps = spec.context + spec.reach
    return torch.from_numpy(np.stack([one.values[len(one) - steps :] for one in items]))


def window_of(values: Float[Tensor, "batch steps"], spec: WindowSpec, size: Float[Tensor, " batch"]) -> Window:
    """The window of :func:`tails` with a horizon behind; ``size`` where its context is 0."""
    return gather(values, torch.full((len(values),), spec.reach), spec, size)


def forecast(
    denoiser: Denoises, items: Sequence[Series], spec: WindowSpec, *, horizon: int | None = None, **how: Any
) -> list[Forecast]:
    """A forecast of each series, from its last steps.

    Args:
        denoiser: a model of such windows.
        items: histories; NaN where missing.
        spec: of the windows that the model was trained on.
        horizon: steps to forecast, at most those of the training.
        how: members, guidance, solver, seed and so on: see :func:`condiff.series.paths`.

    Raises: as :func:`check_forecastable` and :func:`condiff.series.paths`.
    """
    horizon = check_forecastable(items, spec, horizon)
    found = paths(denoiser, last_window(items, spec), [one.item for one in items], **how)
    ends = found[:, :, spec.context : spec.context + horizon].numpy()
    return [
        Forecast(one.item, one.times(len(one), horizon), one.freq, ends[:, i].copy()) for i, one in enumerate(items)
    ]
