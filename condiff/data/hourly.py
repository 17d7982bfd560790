"""Generated hourly series, as sales, loads and traffic look: for trying forecasters without a file."""

from __future__ import annotations

import math

import numpy as np

from condiff.data.series import Series
from condiff.errors import BadValue, require_extra

DAY, WEEK = 24, 168


def hourly(items: int = 40, steps: int = 1344, *, seed: int = 0, start: str = "2024-01-01") -> list[Series]:
    """Series of a daily and a weekly pattern of their own, autoregressive noise and shifts of level.

    ``level (1 + day + weekend dip + 0.15 AR(1) with phi = 0.9)``, all above 0; levels differ by the item, over a factor
    of 100 in all, and change by about 20 % once in two weeks on average.

    Args:
        items: how many.
        steps: hours each, 1344 are eight weeks.
        seed: of everything.
        start: timestamp of the first hour.

    Raises:
        BadValue: fewer than one item or a week.
    """
    if items < 1 or steps < WEEK:
        raise BadValue(f"hourly series are at least 1 of {WEEK} steps, got {items} of {steps}")
    pandas = require_extra("pandas", "series")
    rng, hours = np.random.default_rng(seed), np.arange(steps)
    made = []
    for i in range(items):
        phase, second, depth, dip = (
            rng.uniform(0, DAY),
            rng.uniform(0, DAY),
            rng.uniform(0.2, 0.5),
            rng.uniform(0.0, 0.4),
        )
        day = depth * np.sin(2 * np.pi * (hours - phase) / DAY) + 0.1 * np.sin(4 * np.pi * (hours - second) / DAY)
        weekend = -dip * (hours % WEEK >= 5 * DAY)
        shift = np.cumsum(rng.normal(0.0, 0.2, steps) * (rng.random(steps) < 1.0 / (2 * WEEK)))
        values = (1.0 + day + weekend + 0.15 * _ar(rng, steps)) * np.exp(shift) * 10.0 ** rng.uniform(0.0, 2.0)
        made.append(Series(f"series-{i}", pandas.Timestamp(start), "h", np.maximum(values, 0.0)))
    return made


def _ar(rng: np.random.Generator, steps: int, phi: float = 0.9) -> np.ndarray:
    """A stationary autoregressive series of unit variance."""
    shocks = rng.normal(size=steps) * math.sqrt(1.0 - phi**2)
    out = np.empty(steps)
    state = rng.normal()
    for t in range(steps):
        state = phi * state + shocks[t]
        out[t] = state
    return out
