"""``condiff edit``: pictures under other classes or prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condiff.cli.options import (
    Flag,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Pictures,
    RunFolder,
    Several,
    TwoWords,
)
from condiff.cli.output import note, show_json
from condiff.errors import BadValue


@dataclass(frozen=True)
class Edit:
    """Change a picture's class or prompt: find the noise that the model turns into it, and sample from there.

    Prompts of a UNet keep the picture's layout by Prompt-to-Prompt: for a share of the steps attention is that of the
    source. With --blend-words only what these words are about changes.

    Try:
      condiff edit runs/digits three.png --source 3 --target 8 --out eight.png
      condiff edit pipelines/sd-1.5 cake.jpg --source "a round cake" --target "a square cake" --out square.png
      condiff edit pipelines/sd-1.5 pets/ --source "a cat" --target "a dog" --blend-words cat dog --weight dog=2
      condiff edit pipelines/sd-1.5 PIE-Bench/mapping_file.json --out edited/
    """

    folder: RunFolder
    """A run on pictures with classes, or a saved diffusers pipeline."""

    pictures: Pictures
    """A picture, a folder of them, or a .json of edits (image_path, original_prompt, editing_prompt, blended_word)."""

    source: OptionalText = None
    """Class or prompt of what is there; a .json says it."""

    target: OptionalText = None
    """Class or prompt of what it should become; a .json says it."""

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

    cross_attention: OptionalFloat = None
    """Share of the steps in which common words are looked at as in the source; 0.8 for prompts of a UNet."""

    self_attention: OptionalFloat = None
    """Share of the steps in which places look at each other as in the source; 0.6 for prompts of a UNet."""

    align: str = "refine"
    """How prompts belong together: "refine" takes the tokens that both have, "replace" goes word for word."""

    weight: Several = ()
    """WORD=NUMBER: how much more, or less, a word of the target counts meanwhile. May be repeated."""

    blend_words: TwoWords = None
    """A word of the source and one of the target: only what they are about changes."""

    blend_threshold: float = 0.3
    """Of the largest attention to a word, how much makes a place part of what it is about."""

    blend_from: float = 0.2
    """Share of the steps after which the rest is held to the source."""

    batch: OptionalInt = None
    """Pictures that go through the network together: 16 for a run, 4 for a pipeline."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    out: OptionalPath = None
    """A .png, what was given beside what was made, with a .json of how; of a list, a folder. By default "edited"."""

    overwrite: Flag = False
    """Replace the output if it is there; otherwise a list goes on where it stopped."""

    json: Flag = False
    """Print how it was made as JSON."""

    def run(self) -> int:
        from condiff.methods.edit_lists import run_edits
        from condiff.methods.editing import Request, run_edit

        request = Request(
            steps=self.steps,
            iterations=self.iterations,
            rho=self.rho,
            scale=self.guidance,
            quantile=self.quantile,
            keep_below=self.keep_below,
            cross=self.cross_attention,
            own=self.self_attention,
            align=self.align,
            threshold=self.blend_threshold,
            blend_from=self.blend_from,
            weights=_weights(self.weight),
            batch=self.batch,
            model_weights=self.weights,
            device=self.device,
            overwrite=self.overwrite,
        )
        if self.pictures.suffix.lower() == ".json":
            facts = run_edits(self.folder, self._listed(), request, self.out or Path("edited"))
            worst = min((one["round_trip_psnr"] for one in facts["edits"].values()), default=0.0)
            what = f"{facts['made']} edits made, {facts['pictures']} in {facts['out']}"
        else:
            source, target = self._sides()
            out = self.out or Path("edited.png")
            facts = run_edit(self.folder, self.pictures, source, target, self.blend_words, request, out)
            worst, num = min(facts["round_trip_psnr"]), facts["pictures"]
            what = f"{num} picture{'' if num == 1 else 's'}, {source} to {target}: {facts['out']}"
        if self.json:
            show_json(facts)
        else:
            note(f"{what}\nsampled back as the source, PSNR to what was given: {worst:.1f} dB at the least")
        return 0

    def _listed(self) -> Path:
        """
        Raises:
            BadValue: what a list says itself.
        """
        given = {"--source": self.source, "--target": self.target, "--blend-words": self.blend_words}
        for name, value in given.items():
            if value is not None:
                raise BadValue(
                    f"{self.pictures.name} says source, target and blended words of each edit: leave {name} out"
                )
        return self.pictures

    def _sides(self) -> tuple[str, str]:
        """
        Raises:
            BadValue: not both.
        """
        if self.source is None or self.target is None:
            raise BadValue("say what is there and what it should become: --source and --target")
        if not self.source.strip():
            note("--source is empty: say what is there, or the edit changes more than it should", quiet=self.json)
        return self.source, self.target


def _weights(told: tuple[str, ...]) -> dict[str, float]:
    """
    Raises:
        BadValue: no number for a word.
    """
    out = {}
    for text in told:
        word, _, number = text.rpartition("=")
        try:
            out[word] = float(number)
        except ValueError:
            word = ""
        if not word.strip():
            raise BadValue(f"--weight is WORD=NUMBER, got {text!r}")
    return out
