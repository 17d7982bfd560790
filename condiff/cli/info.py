"""``condiff info``: what a run, a pipeline, an adapter or a weights file is."""

from __future__ import annotations

from dataclasses import dataclass

from condiff.cli.options import Flag, SomePlace
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Info:
    """Tell what a checkpoint is, without loading it; without a place, what is installed.

    Try:
      condiff info
      condiff info runs/digits
      condiff info adapter.safetensors
      condiff info stabilityai/sdxl-turbo
    """

    place: SomePlace = None
    """A run, a checkpoint, a diffusers pipeline or part, an adapter, a .safetensors file, or owner/name on the Hub."""

    json: Flag = False
    """Print JSON."""

    def run(self) -> int:
        from condiff.config import tree
        from condiff.methods import inspection

        facts = inspection.describe(self.place) if self.place is not None else inspection.environment()
        if self.json:
            show_json(facts)
        else:
            note(tree(facts))
        return 0
