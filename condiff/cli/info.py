"""``condiff info``: what a run folder or a weights file is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from condiff.cli.output import note, show_json, tree


@dataclass(frozen=True)
class Info:
    """Tell what a run folder or a .safetensors file holds; without a path, what is installed."""

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """A run folder, a checkpoint folder or a .safetensors file."""

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from condiff.methods import runs

        facts = runs.describe(self.path) if self.path is not None else runs.environment()
        if self.json:
            show_json(facts)
        else:
            note(tree(facts))
        return 0
