"""``condiff edit``: a picture under another class or prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condiff.cli.options import Flag, OptionalPath, OptionalText, Pictures, RunFolder
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Edit:
    """Change a picture's class or prompt: find the noise that the model turns into it, and sample from there.

    Try:
      condiff edit runs/digits three.png --source 3 --target 8 --out eight.png
      condiff edit pipelines/sd-1.5 cake.jpg --source "a round cake" --target "a square cake" --out square.png
    """

    folder: RunFolder
    """A run on pictures with classes, or a saved diffusers pipeline."""

    pictures: Pictures
    """A picture or a folder of them."""

    source: str
    """Class or prompt of what is there."""

    target: str
    """Class or prompt of what it should become."""

    steps: int = 50
    """Steps of the inversion, and of the way back."""

    iterations: int = 10
    """Evaluations for the exact step beside the first; 0 is DDIM inversion."""

    rho: float = 0.0
    """Pull of the predicted noise towards the picture, as a root mean square; the paper's is 0.0078. 0 reconstructs."""

    guidance: float = 7.5
    """Strength of the change."""

    quantile: float = 0.4
    """Share of the differences that is taken for noise, and left out."""

    keep_below: float = 0.4
    """From this time on, what doesn't change is taken from the picture; 0 for never."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    out: OptionalPath = None
    """A .png: what was given beside what was made; edited.png by default. How is in a .json beside it."""

    overwrite: Flag = False
    """Replace the output if it is there."""

    json: Flag = False
    """Print how it was made as JSON."""

    def run(self) -> int:
        from condiff.methods.editing import Request, run_edit

        request = Request(
            pictures=self.pictures,
            source=self.source,
            target=self.target,
            steps=self.steps,
            iterations=self.iterations,
            rho=self.rho,
            scale=self.guidance,
            quantile=self.quantile,
            keep_below=self.keep_below,
            weights=self.weights,
            device=self.device,
            overwrite=self.overwrite,
        )
        if not self.source.strip():
            note("--source is empty: say what is there, or the edit changes more than it should", quiet=self.json)
        facts = run_edit(self.folder, request, self.out or Path("edited.png"))
        if self.json:
            show_json(facts)
        else:
            worst = min(facts["round_trip_psnr"])
            num = facts["pictures"]
            what = f"{num} picture{'' if num == 1 else 's'}, {self.source} to {self.target}: {facts['out']}"
            note(f"{what}\nsampled back as {self.source}, PSNR to what was given: {worst:.1f} dB at the least")
        return 0
