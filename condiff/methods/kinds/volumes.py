"""Volumes (C, D, H, W), and scans: volumes in files that say where they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from condiff import figures
from condiff.data import Data, RecalledVolumes, of_volumes
from condiff.methods import scans
from condiff.methods.drawn import Drawing, middle, save_grid
from condiff.methods.given import Given
from condiff.methods.kinds.kind import Kind, OfRun
from condiff.methods.kinds.pictures import nearness

MOST = 8  # volumes that a run is judged by
MOST_NUMBERS = 2**25  # of volumes in one network call


class Volumes(Kind):
    """(C, D, H, W): few at once, judged one by one, seen in their middle."""

    fewest = 1

    def matches(self, data: Any) -> bool:
        return data.vocab is None and len(data.shape) == 4

    def rows_at_once(self, data: Data, batch: int) -> int:
        return max(1, min(batch, MOST_NUMBERS // math.prod(data.shape)))

    def judged(self, heldout: Data) -> int:
        return min(len(heldout), MOST)

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        return {"samples": made.num, **nearness(made)}

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        channels, _, *sides = run.data.shape
        if not figures.drawable((channels, *sides)):
            return None
        return save_grid(middle(made), stem.with_name(f"{stem.name}.png"))


class Scans(Volumes):
    """Volumes of `condiff train volumes`, which go back to the grid of what was given."""

    ending = ""  # a folder

    def matches(self, data: Any) -> bool:
        return isinstance(data, Data) and of_volumes(data) is not None

    def remembered(self, data: Data) -> dict[str, Any]:
        own = of_volumes(data)
        assert own is not None
        how = {"target": own[0].target, "condition": list(own[0].condition), "percentiles": list(own[0].percentiles)}
        return {**super().remembered(data), **how}

    def recalled(self, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
        return RecalledVolumes(facts)

    def check_output(self, out: Path, overwrite: bool) -> None:
        scans.check_output(out, overwrite)

    def check_count(self, out: Path, num: int) -> None:
        super().check_count(out, num)
        scans.check_count(out, num)

    def default_num(self, labels: Sequence[str], data: Data) -> int:
        return 1

    def read_conditions(self, words: Sequence[str], run: OfRun) -> Given:
        """Scans of a case or more; see :func:`condiff.methods.scans.read`."""
        own = of_volumes(run.data)
        if own is None or not words:
            return super().read_conditions(words, run)
        lists, places = scans.read(words, own[0])
        rows = {name: torch.cat(values) for name, values in lists.items()}
        return Given(rows, tuple(p.name for p in places), tuple(places))

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """NIfTI where the samples belong, or arrays."""
        if not scans.write(made, out, run.heldout, told.places):
            super().write(made, out, run, told)
