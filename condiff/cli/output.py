"""What commands print: JSON for programs, or lines for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def show_json(value: Any) -> None:
    """Print JSON and nothing else to standard output."""
    json.dump(value, sys.stdout, indent=1)
    print()


def note(text: str, *, quiet: bool = False) -> None:
    """A line for a person; to standard error when standard output belongs to a program."""
    print(text, file=sys.stderr if quiet else sys.stdout, flush=True)


def summary(metrics: dict[str, Any], folder: Path) -> str:
    """The figures of a run, where to look, and what to type next."""
    lines = ["", "results"]
    for key, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append(f"  {key:<24} {value:.4g}")
    looks = [
        ("report.html", "everything on one page"),
        *((path.name, "samples") for path in sorted(folder.glob("samples.*"))),
        ("curves.png", "training curves"),
    ]
    lines += ["", f"look at  {folder}/"]
    lines += [f"  {name:<20} {what}" for name, what in looks if (folder / name).exists()]
    return "\n".join([*lines, "", f"more samples: condiff sample {folder}"])
