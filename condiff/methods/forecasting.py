"""Forecasts by runs: tables of series in; quantiles, sample paths and pictures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condiff import figures
from condiff.data import Series, WindowSpec, read_series, season_of
from condiff.errors import BadFile, BadValue, require_extra, unknown
from condiff.files import replacing
from condiff.methods.drawing import override
from condiff.methods.runs import RunFolder, open_run
from condiff.methods.tsdiff import representative
from condiff.methods.windowed import how, spec_of, windows_of
from condiff.metrics import DECILES, sample_quantiles
from condiff.series import (
    Forecast,
    Imputation,
    SelfGuidance,
    forecast,
    impute,
    refine_forecasts,
    seasonal_naive,
)

COLUMNS = ("item", "time", "value", "start")  # options of the data that say how a table is read
PANELS, BEFORE = 9, 48  # of a picture, and steps before a gap


# Commands


def forecast_file(folder: Path, data: Path, out: Path, *, overwrite: bool = False, **asked: Any) -> dict[str, Any]:
    """Forecast every series of a table, and write quantiles (.csv), samples (.npz) and a picture (.png).

    Args:
        folder: of a run on series.
        data: the histories.
        out: the .csv; the others lie beside it.
        asked: horizon, samples, guidance, scale, shift, solver, steps, seed, batch, weights, device, and options of the
            table (item, time, value, start, gaps).

    Returns:
        Where the files are, and how many series of how many steps were forecast.

    Raises:
        BadValue: a run on other data, and what :func:`condiff.series.forecast` refuses. BadFile: ``out`` is there.
    """
    check_out(out, overwrite)
    task = Task.of(folder, data, asked)
    made = forecast(task.model, task.items, task.spec, horizon=asked.get("horizon"), **task.how())
    write_forecasts(made, task.items, out)
    return {**beside(out), "series": len(made), "horizon": made[0].samples.shape[1], "samples": len(made[0].samples)}


def refine_file(
    folder: Path, data: Path, base: Path, out: Path, *, overwrite: bool = False, **asked: Any
) -> dict[str, Any]:
    """Refine base forecasts of a table's series: a wide or long table of what comes behind them, or ``"naive"``.

    Args:
        folder, data, out, asked: as for :func:`forecast_file`.
        base: a table read as ``data`` is, whose series begin where the histories end; ``naive`` for seasonal naive.

    Raises: as :func:`forecast_file`; BadValue: forecasts of other series or timestamps.
    """
    check_out(out, overwrite)
    task = Task.of(folder, data, asked)
    horizon = task.spec.horizon
    if str(base) == "naive":
        bases = [seasonal_naive(one, horizon, min(season_of(one.freq), len(one))) for one in task.items]
    else:
        bases = aligned(read_series(base, task.spec.freq, **{**task.columns, "gaps": True}), task.items, horizon)
    windows = windows_of(task.run.data)
    at = representative(task.model, windows)
    chosen = {k: v for k, v in task.how().items() if k in ("members", "seed", "batch")}
    words = {"by": asked.get("guidance"), "steps": asked.get("iterations")}
    chosen |= {k: v for k, v in words.items() if v is not None}
    made = refine_forecasts(task.model, task.items, bases, task.spec, at=at, **chosen)
    write_forecasts(made, task.items, out)
    return {**beside(out), "series": len(made), "horizon": horizon, "samples": len(made[0].samples), "at": at}


def impute_file(folder: Path, data: Path, out: Path, *, overwrite: bool = False, **asked: Any) -> dict[str, Any]:
    """Fill the gaps of a table's series: quantiles of what was missing (.csv), the table with medians in its gaps
    (-whole.csv), sample paths (.npz), a picture (.png).

    Raises: as :func:`forecast_file`; BadValue: nothing is missing.
    """
    whole = out.with_name(f"{out.stem}-whole.csv")
    check_out(out, overwrite, whole)
    task = Task.of(folder, data, {**asked, "gaps": True})
    gaps = sum(int((~one.observed).sum()) for one in task.items)
    if not gaps:
        raise BadValue(f"{data}: no value is missing")
    made = impute(task.model, task.items, task.spec, **task.how())
    write_imputations(made, out)
    with replacing(whole) as temporary:
        wide([one.filled for one in made]).to_csv(temporary, float_format="%.8g")
    return {
        **beside(out),
        "whole_file": str(whole),
        "series": len(made),
        "filled": gaps,
        "samples": len(made[0].samples),
    }


@dataclass(frozen=True)
class Task:
    """A run, its model, and the series that something is asked of."""

    run: RunFolder
    model: Any
    spec: WindowSpec
    items: list[Series]
    columns: dict[str, Any]
    asked: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, data: Path, asked: Mapping[str, Any]) -> Task:
        run = open_run(folder)
        spec = spec_of(run.data)
        if spec is None:
            raise BadValue(f"{folder} is no run on series: condiff train series --data FILE --freq H --horizon 24")
        stored = run.request.options
        columns: dict[str, Any] = {k: asked.get(k) or stored.get(k) for k in COLUMNS if asked.get(k) or stored.get(k)}
        columns["gaps"] = bool(asked.get("gaps") or stored.get("gaps"))
        items = read_series(data, spec.freq, **columns)
        model = run.model(asked.get("weights") or "ema", asked.get("device"))
        return cls(run, model, spec, items, columns, asked)

    def how(self) -> dict[str, Any]:
        """Members, guidance, solver and so on as :func:`condiff.series.forecast` takes them."""
        asked = {k: v for k, v in self.asked.items() if v is not None}
        sampler = override(self.run.recipe.sampler, solver=asked.get("solver"), steps=asked.get("steps"))
        names = {"by": "guidance", "scale": "scale", "shift": "shift"}
        said = {name: asked[word] for name, word in names.items() if word in asked}
        led = SelfGuidance(**said) if said else None
        rest = {name: asked[name] for name in ("seed", "batch", "progress") if name in asked}
        return {**how(sampler), "members": asked.get("samples", 100), "guidance": led, **rest}


def aligned(found: Sequence[Series], items: Sequence[Series], horizon: int) -> list[np.ndarray]:
    """The base forecast of each series, behind its end.

    Raises:
        BadValue: a series without one, or one that covers other timestamps.
    """
    by_item, out = {one.item: one for one in found}, []
    for one in items:
        base = by_item.get(one.item)
        if base is None:
            raise unknown("base forecast of series", one.item, by_item)
        wanted = one.times(len(one), horizon)
        if base.start != wanted[0] or len(base) != horizon:
            raise BadValue(
                f"{one.item}: the base forecast is of {len(base)} steps from {base.start} on, the model's of {horizon} "
                f"from {wanted[0]} on"
            )
        out.append(base.values)
    return out


# Files


def check_out(out: Path, overwrite: bool, *others: Path) -> None:
    """
    Raises:
        BadValue: an ending other than .csv. BadFile: one of the files is there.
    """
    if out.suffix != ".csv":
        raise BadValue(f"--out is a .csv, beside which samples and a picture lie, got {out.name!r}")
    for path in (*map(Path, beside(out).values()), *others):
        if path.exists() and not overwrite:
            raise BadFile(f"{path} exists already: choose another --out, or say --overwrite")


def beside(out: Path) -> dict[str, str]:
    """The files of a result, by what they are."""
    return {"out": str(out), "samples_file": str(out.with_suffix(".npz")), "picture": str(out.with_suffix(".png"))}


def write_forecasts(made: Sequence[Forecast], items: Sequence[Series], out: Path) -> None:
    """``item_id, timestamp, mean, 0.1 ... 0.9``; arrays by item (S, H); fans behind the last steps."""
    tables = [_rows(one.item, one.times, one.samples) for one in made]
    before = 3 * len(made[0].times)
    panels = [(one.item, past.values[-before:], _fan(one.samples)) for one, past in zip(made, items, strict=True)]
    _write(tables, {one.item: one.samples for one in made}, panels, out)


def write_imputations(made: Sequence[Imputation], out: Path) -> None:
    """As forecasts, with a row for each filled value; the fans begin at the first gap."""
    tables, panels = [], []
    for one in made:
        gone = ~one.series.observed
        if not gone.any():
            continue
        tables.append(_rows(one.series.item, one.series.times()[gone], one.samples[:, gone]))
        first = int(gone.argmax())
        past = one.series.values[max(0, first - BEFORE) : first]
        panels.append((one.series.item, past, _fan(one.samples[:, first : first + 2 * BEFORE])))
    _write(tables, {one.series.item: one.samples for one in made}, panels, out, "the first gap")


def wide(items: Sequence[Series]) -> Any:
    """Series as a table (a DataFrame), a column a series."""
    pandas = require_extra("pandas", "series")
    columns = {one.item: pandas.Series(one.values, index=one.times()) for one in items}
    return pandas.DataFrame(columns).rename_axis("timestamp")


def _rows(item: str, times: Any, samples: np.ndarray) -> Any:
    pandas = require_extra("pandas", "series")
    columns = {"item_id": item, "timestamp": times, "mean": samples.mean(axis=0)}
    quantiles = sample_quantiles(torch.from_numpy(samples), DECILES).numpy()
    return pandas.DataFrame({**columns, **{f"{q:g}": row for q, row in zip(DECILES, quantiles, strict=True)}})


def _fan(samples: np.ndarray) -> np.ndarray:
    return sample_quantiles(torch.from_numpy(samples), figures.FAN).numpy()


def _write(
    tables: Sequence[Any],
    samples: Mapping[str, np.ndarray],
    panels: Sequence[Any],
    out: Path,
    origin: str = "the first forecast",
) -> None:
    pandas = require_extra("pandas", "series")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        pandas.concat(tables).to_csv(temporary, index=False, float_format="%.8g")
    with replacing(out.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
        arrays: dict[str, Any] = dict(samples)
        np.savez(file, **arrays)
    figures.fans(panels[:PANELS], out.with_suffix(".png"), origin=origin)
