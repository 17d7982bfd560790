"""Reproduction: a paper's claim at a size that runs here, with its baseline, figures, direction and verdict."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from condiff.errors import BadValue, unknown

BUDGETS = ("small", "gpu")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measured claim: ours against a baseline, over seeds.

    Args:
        name: what is measured, in words.
        baseline, ours: the figure of every seed, in one order.
        lower_is_better: the direction that the claim expects.
        margin: by how much ours must win on the mean, relative to the baseline (0 = any).
    """

    name: str
    baseline_name: str
    baseline: tuple[float, ...]
    ours_name: str
    ours: tuple[float, ...]
    lower_is_better: bool = True
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not self.baseline or len(self.baseline) != len(self.ours):
            raise BadValue(f"{self.name}: one figure a seed on both sides, got {self.baseline} and {self.ours}")

    @property
    def gain(self) -> float:
        """Relative improvement of the mean; positive is in the direction of the claim."""
        base, ours = statistics.fmean(self.baseline), statistics.fmean(self.ours)
        change = (base - ours) if self.lower_is_better else (ours - base)
        return change / abs(base) if base else float(change > 0)

    @property
    def holds(self) -> bool:
        """The mean wins by the margin, and every seed points the same way."""
        wins = [(b - o if self.lower_is_better else o - b) > 0 for b, o in zip(self.baseline, self.ours, strict=True)]
        return self.gain > self.margin and all(wins)


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The outcome of ``condiff reproduce <slug>``."""

    slug: str
    claim: str
    budget: str
    seeds: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    seconds: float
    machine: str
    notes: str = ""
    series: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """'reproduced', 'partly reproduced' or 'not reproduced'."""
        held = [c.holds for c in self.comparisons]
        return "reproduced" if all(held) else "partly reproduced" if any(held) else "not reproduced"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the verdict and each comparison's gain."""
        out = asdict(self)
        for row, comparison in zip(out["comparisons"], self.comparisons, strict=True):
            row.update(gain=round(comparison.gain, 4), holds=comparison.holds)
        return {"verdict": self.verdict, **out}

    def save(self, folder: Path) -> Path:
        """Write ``<slug>.json`` and ``<slug>.png`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.slug}.json"
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        self._figure(folder / f"{self.slug}.png")
        return path

    def _figure(self, path: Path) -> None:
        from condiff.figures import bars

        bars(
            [(c.name, c.baseline_name, c.baseline, c.ours_name, c.ours) for c in self.comparisons],
            path,
            title=f"{self.slug}: {self.verdict}",
        )

    def table(self) -> str:
        """baseline | ours | expected | verdict, as text."""
        lines = [f"{self.slug}: {self.claim}", ""]
        for c in self.comparisons:
            arrow = "lower" if c.lower_is_better else "higher"
            lines += [
                f"  {c.name}",
                f"    baseline  {c.baseline_name:<34} {_spread(c.baseline)}",
                f"    ours      {c.ours_name:<34} {_spread(c.ours)}",
                f"    expected  ours {arrow}" + (f" by more than {c.margin:.0%}" if c.margin else ""),
                f"    verdict   {'holds' if c.holds else 'does not hold'} ({c.gain:+.1%})",
            ]
        tail = f"  {self.verdict}; seeds {list(self.seeds)}, {self.seconds:.0f} s on {self.machine}"
        return "\n".join([*lines, "", tail, *([f"  {self.notes}"] if self.notes else [])])


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.4g} +- {std:.2g} (n={len(values)})"


def check_budget(budget: str) -> str:
    """The budget's name, if there is one of it."""
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    return budget


def machine() -> str:
    """The processor or accelerator in words."""
    import os
    import platform

    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
