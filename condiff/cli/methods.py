"""``condiff methods``, ``condiff reproduce``, ``condiff cite``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from condiff.cli.options import Flag, Slug
from condiff.cli.output import note, show_json
from condiff.methods.catalogue import ENTRIES, find


@dataclass(frozen=True)
class Methods:
    """List the methods: what each is for, and whether its claim was reproduced."""

    json: Flag = False
    """Print a JSON list of objects: slug, title, arxiv, family, trains, summary, verdict."""

    def run(self) -> int:
        entries = [entry.as_dict() for entry in ENTRIES.values()]
        if self.json:
            show_json(entries)
            return 0
        width = max(len(e["slug"]) for e in entries)
        for e in entries:
            verdict = e["verdict"]["verdict"] if e["verdict"] else "not run"
            note(f"{e['slug']:<{width}}  {e['summary']}\n{'':<{width}}  arXiv {e['arxiv']}, reproduction: {verdict}")
        return 0


@dataclass(frozen=True)
class Reproduce:
    """Re-run a paper's claim at a size that fits this machine: baseline, ours, expected, verdict."""

    slug: Slug
    """The method, as `condiff methods` lists it."""

    budget: Literal["small", "gpu"] = "small"
    """small: within ten minutes on two CPU cores. gpu: larger, needs a CUDA device."""

    out: Path = Path("runs/reproduce")
    """Folder for <slug>.json and <slug>.png."""

    json: Flag = False
    """Print the outcome as JSON."""

    def run(self) -> int:
        entry = find(self.slug)
        note(f"reproducing {entry.slug}: {entry.title} (arXiv {entry.arxiv})", quiet=self.json)
        outcome = importlib.import_module(entry.module).reproduce(self.budget)
        path = outcome.save(self.out)
        if self.json:
            show_json(outcome.as_dict())
        else:
            note(f"{outcome.table()}\n  written: {path} and {path.with_suffix('.png')}")
        return 0


@dataclass(frozen=True)
class Cite:
    """Print the BibTeX entry of a method."""

    slug: Slug
    """The method, as `condiff methods` lists it."""

    def run(self) -> int:
        print(find(self.slug).bibtex)
        return 0
