"""``condiff restore``: pictures in, restored pictures out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condiff.cli.options import Flag, OptionalInt, OptionalText, Pictures, RunFolder
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Restore:
    """Restore pictures of any size by a run that was trained on pairs; each comes back at its own size.

    Try:
      condiff restore runs/foggy-to-clear new_foggy/ --out restored/
      condiff restore runs/foggy-to-clear street.jpg --out street.png --steps 2
    """

    folder: RunFolder
    """The run folder."""

    pictures: Pictures
    """A picture, or a folder of them."""

    out: Path = Path("restored")
    """Folder of the results, under the pictures' names; a .png file for one picture."""

    solver: OptionalText = None
    """Update rule, such as ddim, heun; the run's own by default."""

    steps: OptionalInt = None
    """Solver steps."""

    overlap: OptionalInt = None
    """Pixels that the windows of a large picture share; an eighth of the model's size by default."""

    seed: int = 0
    """Seed of the noise."""

    batch: int = 64
    """Windows a network call."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    overwrite: Flag = False
    """Write into an output that is there."""

    json: Flag = False
    """Print where the pictures are, and how they were made, as JSON."""

    def run(self) -> int:
        from condiff.methods.restoring import restore

        made = restore(
            self.folder,
            self.pictures,
            self.out,
            seed=self.seed,
            overwrite=self.overwrite,
            solver=self.solver,
            steps=self.steps,
            overlap=self.overlap,
            batch=self.batch,
            weights=self.weights,
            device=self.device,
        )
        if self.json:
            show_json(made)
        else:
            count = f"{made['num']} picture{'' if made['num'] == 1 else 's'}"
            note(f"{count}, {made['nfe']} network calls a window, {made['seconds']:.2f} s: {made['out']}")
        return 0
