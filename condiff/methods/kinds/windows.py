"""Windows of series, of `condiff train series`: judged by forecasts of what training hasn't seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condiff import figures
from condiff.config import to_config
from condiff.data import Data, Windows, season_of
from condiff.files import replacing
from condiff.methods.drawn import Drawing
from condiff.methods.given import Given
from condiff.methods.kinds.kind import Kind, OfRun
from condiff.methods.windowed import RecalledWindows, how, spec_of, table_of, windows_of
from condiff.metrics import linear_predictive_score, weighted_quantile_loss
from condiff.series import forecast, seasonal_naive

MOST_SERIES, MEMBERS = 16, 20  # forecasts that a run is judged by
MOST_NEW, SHOWN, REAL = 256, 15, 5  # new windows that it is judged by, and that are drawn
AXES = "steps; each window over the mean size of its context"


def whole_windows(windows: Windows, most: int) -> torch.Tensor:
    """The series in some windows, evenly from first to last, without those in which something is missing: (n, L)."""
    found = windows.windows(torch.linspace(0, len(windows) - 1, most).long())
    return found.values[found.mask[..., 0].all(1)][..., 0]


class SeriesWindows(Kind):
    """Windows (L, 1 + lags), each over the size of its context; channel 0 is the series."""

    holds = "series"
    fewest = 1
    default_method = "tsdiff"
    sources = ("series",)
    endings = (".csv", ".png", ".npz", ".npy")
    ending = ".csv"

    def matches(self, data: Any) -> bool:
        return spec_of(data) is not None

    def remembered(self, data: Data) -> dict[str, Any]:
        own = windows_of(data)
        return {**super().remembered(data), "spec": to_config(own.spec), "start": own.start, "sizes": own.sizes}

    def recalled(self, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
        return RecalledWindows(facts)

    # Judging

    def judged(self, heldout: Data) -> int:
        return min(len(heldout), MOST_NEW)

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        """CRPS of forecasts of the series' ends beside seasonal naive, and how well new windows teach"""
        own = windows_of(heldout)
        spec, items = own.spec, own.items[:MOST_SERIES]
        pasts = [one.cut(0, len(one) - spec.horizon) for one in items]
        truth = torch.tensor(np.stack([one.values[-spec.horizon :] for one in items]))
        seen = [past.observed[-spec.context :].any() for past in pasts]
        pasts, truth = [p for p, s in zip(pasts, seen, strict=True) if s], truth[torch.tensor(seen)]
        if not pasts or not bool((truth.nan_to_num() != 0.0).any()):  # nothing that scores could be relative to
            return {"samples": made.num}
        season = season_of(spec.freq)
        simple = np.stack([seasonal_naive(p, spec.horizon, min(season, len(p))) for p in pasts])
        paths = forecast(model, pasts, spec, members=MEMBERS, **how(run.recipe.sampler))
        samples = torch.tensor(np.stack([one.samples for one in paths], axis=1))
        found: dict[str, Any] = {
            "crps": weighted_quantile_loss(samples, truth),
            "crps_seasonal_naive": weighted_quantile_loss(torch.tensor(simple)[None], truth),
        }
        real = whole_windows(own, self.judged(own))
        if min(len(real), made.num) > 1:  # a regression
            found["linear_predictive_score"] = linear_predictive_score(made.x[..., 0], real, spec.horizon)
        return {**found, "samples": made.num}

    # Looking

    def shown(self, data: Data) -> int:
        return SHOWN

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        rows = torch.linspace(0, len(run.heldout) - 1, min(REAL, len(run.heldout))).long()  # neighbours look alike
        real = run.heldout.batch(rows)["x"]
        return figures.series(made.x[:SHOWN, :, :1], stem.with_name(f"{stem.name}.png"), real=real[..., :1], note=AXES)

    # ``condiff sample``

    def _check_drawable(self, out: Path, ending: str) -> None:
        if ending == "":
            super()._check_drawable(out, ending)

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """A table like the data, a column a series, each over the size of one of the data's series; .npz and .npy hold
        windows as the model has them."""
        x = made.x[..., :1]
        if out.suffix.lower() == ".png":
            figures.series(x[:SHOWN], out, note=AXES)
        elif out.suffix.lower() != ".csv":
            super().write(replace(made, x=x), out, run, told)
        else:
            with replacing(out) as temporary:
                table_of(x[..., 0], run.data).to_csv(temporary, float_format="%.8g")
