"""``condiff tie`` and ``condiff companions``: a companion of a run's pictures, trained and drawn in every direction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condiff.cli.options import (
    Flag,
    Many,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    RunFolder,
    RunOrPipeline,
    Several,
    Size,
    flat,
)
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Tie:
    """Tie pictures to a companion of theirs (edges, depth, a sketch): one adapter for all directions (unicon).

    Try:
      condiff tie runs/cells --data cells/ --data outlines/ --name outline --out runs/outline
      condiff companions runs/outline --known outline=new/ --out made/
      condiff tie pipelines/sd15 --data photos/ --data depth/ --name depth --captions captions/ --trigger "depth map, "
      condiff tie pipelines/flux --data rooms/ --data sketches/ --prompt "a room" --size 512 512 --dtype bfloat16
    """

    target: RunOrPipeline
    """A trained run of pictures, a folder with a diffusers pipeline, or its name on the Hub; it is left as it is."""

    data: Many = ()
    """Folders: the pictures, then their companions, matched by name."""

    name: str = "companion"
    """What the companion is called."""

    prompt: OptionalText = None
    """What all pictures show, for a pipeline; a class of a pipeline of classes. Nothing by default."""

    captions: OptionalPath = None
    """A folder of text files with the pictures' names, in place of --prompt."""

    trigger: str = ""
    """What the companions' prompts begin with, such as "depth map, "."""

    out: Path = Path("runs/tied")
    """The new run's folder."""

    rank: OptionalInt = None
    """Of the low-rank weights; 16 on a run, 64 on a pipeline."""

    apart: Flag = False
    """Companions are natural pictures that aren't aligned place by place (the same subject, another view)."""

    steps: OptionalInt = None
    """Training steps; 2000 by default."""

    batch: OptionalInt = None
    """Pairs a step; 64 on a run, 16 on a pipeline."""

    lr: OptionalFloat = None
    """Peak learning rate; 1e-3 on a run, 1e-4 on a pipeline."""

    seed: int = 0
    """Seed of data order, times and noise."""

    size: Size = None
    """Of a pipeline's pictures; by default that it was trained on."""

    dtype: OptionalText = None
    """Of a pipeline's frozen weights: float32, float16, bfloat16."""

    recompute: Flag = False
    """Train in less memory, more slowly: blocks run again in the backward pass."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    json: Flag = False
    """Print where the run is, and what it holds, as JSON; progress goes to standard error."""

    no_trial: Flag = False
    """Don't try a batch and a companion before training."""

    quiet: Flag = False
    """No progress."""

    def run(self) -> int:
        from condiff.methods.tied_bases import Where
        from condiff.methods.tying import Request, tie

        training = {"steps": self.steps, "batch": self.batch, "lr": self.lr, "seed": self.seed}
        training["checkpoint_activations"] = self.recompute or None
        request = Request(
            name=self.name,
            prompts=() if self.prompt is None else (self.prompt,),
            captions=self.captions,
            trigger=self.trigger,
            rank=self.rank,
            aligned=not self.apart,
            training={name: value for name, value in training.items() if value is not None},
        )
        where = Where(device=self.device, size=self.size, dtype=self.dtype)
        how = {"quiet": self.quiet, "trial": not self.no_trial}
        status, made = tie(self.target, flat(self.data), request, self.out, where, **how)
        if self.json:
            show_json(made)
        elif not status.stopped:
            note(f"{self.out}: condiff companions {self.out} --known {self.name}=PICTURES")
        return status.exit_code


@dataclass(frozen=True)
class Companions:
    """Draw with a tied run: pictures from companions, companions from pictures, both, or coarsely.

    Try:
      condiff companions runs/outline --known outline=new/ --out made/
      condiff companions runs/outline --known image=photo.png --out outline.png
      condiff companions runs/outline --num 16 --out both.png
      condiff companions runs/outline --known outline=new/ --hold outline=0.7 --out coarse/
      condiff companions runs/depth --known depth=map.png --prompt "a fox in the snow" --scale 7.5 --out fox.png
    """

    folder: RunFolder
    """A run of `condiff tie`."""

    known: Several = ()
    """NAME=PATH of what is known, a picture or a folder; everything else is made."""

    hold: Several = ()
    """NAME=R: a known one that is followed coarsely only, the more so the smaller R is (0 < R <= 1)."""

    prompt: Several = ()
    """Of a run that was tied to a pipeline: what all pictures show, or one for each; none by default."""

    scale: OptionalFloat = None
    """Guidance by prompts, of such a run; the pipeline's own by default, 1 for none."""

    hearing: float = 0.0
    """Guidance by what picture and companion say to each other; 0 for none more than they learned."""

    num: OptionalInt = None
    """How many, where nothing is known."""

    batch: OptionalInt = None
    """Pairs a network call; 64 of a run, 4 of a pipeline."""

    steps: int = 50
    """Solver steps."""

    solver: OptionalText = None
    """Update rule with one evaluation a step, such as ddim, dpmpp-2m, unipc; ddim by default."""

    seed: int = 0
    """Seed of the noise."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    out: Path = Path("companions")
    """A folder, with one of each variable's pictures inside; or a .png grid."""

    overwrite: Flag = False
    """Replace the output if it is there."""

    json: Flag = False
    """Print where the pictures are, and how they were made, as JSON."""

    def run(self) -> int:
        from condiff.methods.tying import Drawing, draw

        request = Drawing(
            known=self.known,
            hold=self.hold,
            num=self.num,
            prompts=self.prompt,
            scale=self.scale,
            hearing=self.hearing,
            steps=self.steps,
            solver=self.solver,
            seed=self.seed,
            batch=self.batch,
        )
        made = draw(self.folder, self.out, request, device=self.device, overwrite=self.overwrite)
        if self.json:
            show_json(made)
        else:
            note(f"{made['num']} pair{'' if made['num'] == 1 else 's'}, {made['seconds']:.2f} s: {made['out']}")
        return 0
