"""Vectors (D,), and values of whatever other shape; series (L, C)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condiff import figures
from condiff.methods.drawn import Drawing
from condiff.methods.kinds.kind import Kind, OfRun

PANELS, REAL = 20, 5  # series that are drawn, and real ones beside them


class Vectors(Kind):
    """Vectors, and all values that no other kind is made for."""

    def matches(self, data: Any) -> bool:
        return data.vocab is None


class Series(Kind):
    """Series (L, C), drawn as lines."""

    def matches(self, data: Any) -> bool:
        return data.vocab is None and len(data.shape) == 2

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        labels = None if made.names is None else made.names[:PANELS]
        real = run.data.restore(run.heldout.batch(range(min(REAL, len(run.heldout))))["x"])
        drawn = run.data.restore(made.x[:PANELS])
        return figures.series(drawn, stem.with_name(f"{stem.name}.png"), labels=labels, real=real)
