"""``condiff forecast``, ``impute`` and ``refine``: what a run on series is for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from condiff.cli.options import Flag, OptionalFloat, OptionalInt, OptionalPath, OptionalText, RunFolder, Several
from condiff.cli.output import Progress, note, show_json

COLUMNS = ("item", "time", "value", "start", "gaps")  # what --option may say of a table


@dataclass(frozen=True)
class OfSeries:
    """What the three commands share."""

    folder: RunFolder
    """The run folder."""

    data: OptionalPath = None
    """Table of series: .csv, .txt (both also .gz) or .parquet."""

    samples: OptionalInt = None
    """Sample paths of each series; 100 by default."""

    guidance: OptionalText = None
    """What leads samples to observed values: quantile (the default) or squares."""

    seed: int = 0
    """A sample path depends on seed, series and its number only."""

    batch: OptionalInt = None
    """Sample paths a network call; 1024 by default."""

    option: Several = ()
    """KEY=VALUE of how the table is read: item, time, value, start, gaps; those of the training by default."""

    weights: OptionalText = None
    """"ema" (the default), "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    out: OptionalPath = None
    """A .csv; sample paths (.npz) and a picture (.png) lie beside it."""

    overwrite: Flag = False
    """Replace files that are there."""

    json: Flag = False
    """Print what was made as JSON."""

    def asked(self, *left_out: str) -> dict[str, Any]:
        """All that was said, as :mod:`condiff.methods.forecasting` takes it."""
        from condiff.errors import BadValue, unknown
        from condiff.methods.runs import default_device
        from condiff.methods.settings import parse

        if self.data is None:
            raise BadValue("say which series: --data FILE")
        own = ("folder", "data", "option", "out", "json", *left_out)
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}
        if self.guidance is not None and self.guidance.replace(".", "", 1).isdigit():
            strength = f"; its strength is --scale {self.guidance}" if hasattr(self, "scale") else ""
            raise BadValue(f"--guidance is quantile or squares, got {self.guidance}{strength}")
        options = parse(self.option)
        for name in options:
            if name not in COLUMNS:
                raise unknown("option of a table", name, COLUMNS)
        return {**said, **options, "device": self.device or default_device(), "progress": Progress()}

    def told(self, made: dict[str, Any]) -> int:
        if self.json:
            show_json(made)
        else:
            steps = f"{made['filled']} values filled in" if "filled" in made else f"{made['horizon']} steps of"
            note(f"{steps} {made['series']} series, {made['samples']} sample paths: {made['out']}")
            others = {"the whole table": "whole_file", "a picture": "picture", "sample paths": "samples_file"}
            note("beside it " + ", ".join(f"{what} {made[key]}" for what, key in others.items() if key in made))
        return 0

    def path(self, name: str) -> Path:
        """Where the result goes."""
        return self.out or self.folder / f"{name}.csv"


@dataclass(frozen=True)
class Led(OfSeries):
    """What the two that sample share."""

    scale: OptionalFloat = None
    """Strength of the guidance; 4 by default."""

    shift: OptionalText = None
    """What guidance displaces: mean, state or score; the mean with DDPM, the score otherwise."""

    solver: OptionalText = None
    """Update rule, such as ddpm or ddim; the run's own by default."""

    steps: OptionalInt = None
    """Solver steps; the run's own by default."""


@dataclass(frozen=True)
class Forecast(Led):
    """Forecast what comes behind the end of every series of a table.

    Try:
      condiff train series --data load.csv --freq H --horizon 24
      condiff forecast runs/load --data new.csv --out forecast.csv
      condiff forecast runs/load --data new.csv --samples 200 --guidance quantile --scale 4
    """

    horizon: OptionalInt = None
    """Steps, at most those of the training."""

    def run(self) -> int:
        from condiff.methods.forecasting import forecast_file

        asked = self.asked()
        return self.told(forecast_file(self.folder, Path(str(self.data)), self.path("forecast"), **asked))


@dataclass(frozen=True)
class Impute(Led):
    """Fill the gaps (empty cells, absent timestamps) of every series of a table.

    The result has a row for each value that was missing, with its quantiles; beside it, named -whole, lies the table
    itself with medians in its gaps.

    Try:
      condiff impute runs/load --data gaps.csv --out filled.csv
    """

    def run(self) -> int:
        from condiff.methods.forecasting import impute_file

        asked = self.asked()
        return self.told(impute_file(self.folder, Path(str(self.data)), self.path("imputed"), **asked))


@dataclass(frozen=True)
class Refine(OfSeries):
    """Refine the forecasts of another forecaster by a run's model of series.

    Try:
      condiff refine runs/load --data history.csv --base theirs.csv --out better.csv
      condiff refine runs/load --data history.csv --base naive
    """

    base: OptionalPath = None
    """Table of base forecasts, read as the histories are, that begin where those end; or naive, the last season."""

    iterations: OptionalInt = None
    """Steps of the refinement; 20 by default."""

    def run(self) -> int:
        from condiff.errors import BadValue
        from condiff.methods.forecasting import refine_file

        if self.base is None:
            raise BadValue("say what to refine: --base FILE, or --base naive")
        asked = self.asked("base")
        return self.told(refine_file(self.folder, Path(str(self.data)), self.base, self.path("refined"), **asked))
