"""What commands print: JSON for programs, or lines for people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any


def show_json(value: Any) -> None:
    """Print JSON and nothing else to standard output."""
    json.dump(value, sys.stdout, indent=1)
    print()


def note(text: str, *, quiet: bool = False) -> None:
    """A line for a person; to standard error when standard output belongs to a program."""
    print(text, file=sys.stderr if quiet else sys.stdout, flush=True)


class Progress:
    """A line on work that takes long, to standard error, once in ``every`` seconds: none where it is done sooner.

    Called with (steps that are done, all steps) behind each, of one trajectory after another; short ones say nothing.
    """

    def __init__(self, every: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.clock = every, clock
        self.done, self.begun, self.told = 0, clock(), clock()

    def __call__(self, done: int, steps: int) -> None:
        now = self.clock()
        if done <= self.done:  # the next trajectory
            self.begun = now
        self.done = done
        pace = (now - self.begun) / done
        if now - self.told >= self.every and pace * steps >= self.every and done < steps:
            self.told = now
            left = timedelta(seconds=int(pace * (steps - done)))
            note(f"step {done}/{steps}  {left} left", quiet=True)


def summary(metrics: dict[str, Any], folder: Path) -> str:
    """The figures of a run, where to look, and what to type next."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    width = max([23, *map(len, numbers)])
    lines = ["", "results", *(f"  {key:<{width}}  {value:.4g}" for key, value in numbers.items())]
    looks = [
        ("report.html", "everything on one page"),
        *((path.name, "samples") for path in sorted(folder.glob("samples.*"))),
        ("curves.png", "training curves"),
    ]
    lines += ["", f"look at  {folder}/"]
    lines += [f"  {name:<20} {what}" for name, what in looks if (folder / name).exists()]
    return "\n".join([*lines, "", f"more samples: condiff sample {folder}"])
