"""Refinement of forecasts that any forecaster made, by a model's denoising loss (Kollovieh 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from condiff.conditions import Condition, Conditions
from condiff.data import Series, WindowSpec, season_of
from condiff.data.windows import sizes
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadValue, unknown
from condiff.guidance import Quantile, SquaredError, quantile_levels
from condiff.process import Time
from condiff.random import derive_seed
from condiff.sampling import refine
from condiff.sampling.refine import Rule
from condiff.series.baselines import seasonal_naive
from condiff.series.forecast import Forecast, check_forecastable, tails, window_of
from condiff.series.paths import BY, check_batch, check_members, check_shape, refuse_told


def refine_forecasts(
    denoiser: Denoises,
    items: Sequence[Series],
    forecasts: Sequence[np.ndarray],
    spec: WindowSpec,
    *,
    at: Time,
    by: str = "quantile",
    members: int = 100,
    rule: Rule | None = None,
    steps: int = 20,
    weight: float = 1.0,
    seed: int = 0,
    batch: int = 1024,
) -> list[Forecast]:
    """Base forecasts moved to where an unconditional model finds windows likely.

    What holds them near is, by quantiles, the history and the base forecast, each path to a quantile of its own (all
    entries that have a value); by squares, the history alone. Lags of the horizon hold what the forecast says of them.

    Args:
        denoiser, items, spec: as for :func:`condiff.series.forecast`.
        forecasts: of each series (H,), or samples (S, H), H as in the training. NaN is filled by seasonal naive.
        at: the time of the denoising loss; see :func:`condiff.sampling.typical_time`.
        by: ``"quantile"`` or ``"squares"``.
        members: paths that a forecast (H,) becomes; samples keep their number.
        rule, steps: :class:`condiff.sampling.Langevin` and 20 iterations by default.
        weight: of what holds them near.

    Raises:
        BadValue: a conditional model, windows of another shape than the model's, forecasts of another number or shape,
            and as :func:`condiff.series.forecast`.
    """
    if by not in BY:
        raise unknown("refinement of a forecast", by, BY)
    refuse_told(denoiser, "refine")
    check_shape(denoiser, spec.shape)
    horizon = check_forecastable(items, spec, None)
    check_members(members)
    check_batch(batch)
    if len(forecasts) != len(items):
        raise BadValue(f"{len(forecasts)} forecasts came for {len(items)} series")
    groups = [_members(f, one, horizon, members) for f, one in zip(forecasts, items, strict=True)]
    counts = torch.tensor([len(group) for group in groups])
    which = torch.arange(len(items)).repeat_interleave(counts)
    levels = torch.cat([quantile_levels(int(n)) for n in counts])
    seeds = [derive_seed(seed, one.item, j) for one, n in zip(items, counts.tolist(), strict=True) for j in range(n)]
    known, bases, size = tails(items, spec), torch.from_numpy(np.concatenate(groups)), sizes(items)
    unknown_yet = torch.full_like(bases[:1], torch.nan)
    device, out = device_of(denoiser), []
    for rows in torch.arange(len(which)).split(batch):
        past, scale = known[which[rows]], size[which[rows]]
        begun = window_of(torch.cat([past, bases[rows]], dim=1), spec, scale)
        seen = window_of(torch.cat([past, unknown_yet.expand(len(rows), -1)], dim=1), spec, scale)
        start = begun.values.float().to(device)
        near = begun.mask if by == "quantile" else seen.mask
        y = refine(
            denoiser,
            start,
            at=at,
            rule=rule,
            steps=steps,
            near=Quantile(levels[rows]) if by == "quantile" else SquaredError(),
            weight=weight,
            cond=Conditions({"observed": Condition(start, "observation", mask=near.to(device))}),
            rng=[seeds[i] for i in rows.tolist()],
        )
        out.append(y[:, spec.context :, 0].double().cpu() * begun.scale[:, None])
    parts = torch.cat(out).split(counts.tolist())
    return [
        Forecast(one.item, one.times(len(one), horizon), one.freq, part.numpy().copy())
        for one, part in zip(items, parts, strict=True)
    ]


def _members(forecast: np.ndarray, one: Series, horizon: int, members: int) -> np.ndarray:
    """Samples (S, H) in order, from samples or from one forecast for all."""
    found = np.asarray(forecast, dtype=np.float64)
    if found.ndim not in (1, 2) or found.shape[-1] != horizon or not found.size:
        raise BadValue(f"{one.item}: a base forecast is ({horizon},) or (samples, {horizon}), got {found.shape}")
    if np.isinf(found).any():
        raise BadValue(f"{one.item}: the base forecast holds infinity")
    found = np.tile(found, (members, 1)) if found.ndim == 1 else found
    simple = seasonal_naive(one, horizon, min(season_of(one.freq), len(one)))
    return np.sort(np.where(np.isnan(found), simple, found), axis=0)
