"""``condiff stream``: frames through a few-step model, one call of the network each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from condiff.cli.options import Flag, OptionalFloat, OptionalInt, OptionalPath, OptionalText, RunOrPipeline, Size
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Stream:
    """Translate a video or a camera, frame by frame, with a few-step model.

    Try:
      condiff stream stabilityai/sd-turbo --video in.mp4 --prompt "a fox in the snow" --steps 32 45 --out out.mp4
      condiff stream pipelines/lcm --camera 0 --prompt "an oil painting" --frames 500 --out out.mp4
      condiff stream runs/digits --video frames/ --label 3 --steps 24 36 46 --out out.gif
    """

    target: RunOrPipeline
    """A folder with a diffusers pipeline, a pipeline's name on the Hub, or a run folder."""

    video: OptionalPath = None
    """A folder of frames, an animated picture or a video file."""

    camera: OptionalInt = None
    """The number of a camera, 0 the first; Ctrl-C ends it."""

    out: OptionalPath = None
    """A folder of pictures, an animated .gif, .png or .webp, or a video: .mp4, .mov, .mkv."""

    prompt: OptionalText = None
    """What a pipeline makes of the frames."""

    negative: OptionalText = None
    """A prompt to lead away from, with --guidance initialize or full."""

    label: OptionalText = None
    """A class of a run."""

    steps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N...")] = (32, 45)
    """Steps of the schedule that are taken; a larger first one keeps more of the input."""

    of: int = 50
    """Steps of the whole schedule."""

    guidance: str = "self"
    """none; self, away from the input, for free; initialize, one call more a frame; full, twice the calls."""

    scale: float = 1.2
    """Of the guidance; 1 is none."""

    delta: float = 1.0
    """Share of the reference that self and initialize lead away from."""

    clean: Flag = False
    """Add no noise between steps."""

    still: OptionalFloat = None
    """Similarity above which frames may be skipped, such as 0.98."""

    frames: OptionalInt = None
    """Frames that are read at most."""

    size: Size = None
    """Of a pipeline's pictures; by default that it was trained on."""

    rate: OptionalFloat = None
    """Frames a second of the output; by default those of the input."""

    seed: int = 0
    """Of the noises, which are the same for all frames."""

    weights: str = "ema"
    """Of a run: "ema", "raw", or the name of an averaged copy."""

    dtype: OptionalText = None
    """Of a pipeline's weights: float32, float16, bfloat16."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    overwrite: Flag = False
    """Replace the output if it is there."""

    json: Flag = False
    """Print what was made as JSON."""

    def run(self) -> int:
        from condiff.errors import BadValue
        from condiff.methods.streaming import Request, stream_files

        if self.out is None:
            raise BadValue("say to where: condiff stream PIPELINE --video IN.mp4 --out OUT.mp4")
        own = ("target", "out", "clean", "overwrite", "json")
        asked = {name: value for name, value in vars(self).items() if name not in own}
        request = Request(renoise=not self.clean, **asked)
        made = stream_files(self.target, request, self.out, overwrite=self.overwrite)
        if self.json:
            show_json(made)
        else:
            rate = made["frames_per_second"]
            note(f"{made['frames']} frames, {made['calls']} calls, {rate:g} frames a second: {made['out']}")
        return 0
