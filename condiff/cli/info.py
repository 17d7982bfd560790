"""``condiff info``: what a run folder or a weights file is."""

from __future__ import annotations

from dataclasses import dataclass

from condiff.cli.options import Flag, SomePath
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Info:
    """Tell what a run folder or a .safetensors file holds; without a path, what is installed."""

    path: SomePath = None
    """A run folder, a checkpoint folder or a .safetensors file."""

    json: Flag = False
    """Print JSON."""

    def run(self) -> int:
        from condiff.config import tree
        from condiff.methods import inspection

        facts = inspection.describe(self.path) if self.path is not None else inspection.environment()
        if self.json:
            show_json(facts)
        else:
            note(tree(facts))
        return 0
