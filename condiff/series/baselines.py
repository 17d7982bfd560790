"""What forecasts are compared with."""

from __future__ import annotations

import numpy as np

from condiff.data import Series
from condiff.errors import BadValue


def seasonal_naive(one: Series, horizon: int, season: int) -> np.ndarray:
    """The last season of a series again and again, (horizon,).

    A phase whose last value is missing takes the one of the season before, and so on; one that was never observed the
    mean of what was.

    Raises:
        BadValue: a season longer than the series, or horizon and season below 1.
    """
    if not 1 <= season <= len(one) or horizon < 1:
        raise BadValue(
            f"season lies between 1 and the {len(one)} steps of {one.item}, and horizon >= 1: got {season}, {horizon}"
        )
    seasons = len(one) // season
    table = one.values[len(one) - seasons * season :].reshape(seasons, season)
    last = np.full(season, np.nanmean(one.values))
    for row in table:
        last = np.where(np.isfinite(row), row, last)
    return np.resize(last, horizon)
