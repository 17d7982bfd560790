"""``condiff interpolate``: frames between frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from condiff.cli.options import Flag, OptionalPath, OptionalText
from condiff.cli.output import note, show_json

Pictures = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]


@dataclass(frozen=True)
class Interpolate:
    """Put frames between frames, with a model that was trained on triplets.

    Try:
      condiff train triplets --data frames/ --size 64 --method consecutive-brownian-bridge --out runs/street
      condiff interpolate a.png b.png --model runs/street --factor 4 --out between/
      condiff interpolate clip/ --model runs/street --factor 2 --side mean --out slow.gif
    """

    paths: Pictures
    """Two pictures or more, or one clip: a folder of frames, an animated picture, a video file."""

    model: OptionalPath = None
    """Folder of the model: a run, or what Interpolator.save_pretrained wrote."""

    out: OptionalPath = None
    """A folder of pictures, an animated .gif, .png or .webp, or a video: .mp4, .mov, .mkv."""

    factor: int = 2
    """Frames out for each frame in: 2, 4, 8, ..."""

    steps: int = 50
    """Solver steps a frame."""

    side: str = "next"
    """Where sampling starts: prev, next, or mean, the mean of both."""

    eta: float = 1.0
    """Share of the bridge's noise, from 0 to 1."""

    seed: int = 0
    """A frame depends on the seed and its place only."""

    rate: float = 25.0
    """Frames a second of an animation."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    batch: int = 16
    """Frames made together."""

    overwrite: Flag = False
    """Replace the output if it is there."""

    json: Flag = False
    """Print what was made as JSON."""

    def run(self) -> int:
        from condiff.errors import BadValue
        from condiff.methods.runs import check_device, default_device
        from condiff.video import interpolate_files

        if self.model is None or self.out is None:
            raise BadValue("say with what and to where: condiff interpolate A.png B.png --model RUN --out FOLDER")
        made = interpolate_files(
            self.paths,
            self.model,
            self.out,
            factor=self.factor,
            steps=self.steps,
            side=self.side,
            eta=self.eta,
            seed=self.seed,
            rate=self.rate,
            weights=self.weights,
            device=check_device(self.device or default_device()),
            batch=self.batch,
            overwrite=self.overwrite,
            progress=not self.json,
        )
        if self.json:
            show_json(made)
        else:
            note(f"{made['given']} frames in, {made['frames']} out: {made['out']}")
        return 0
