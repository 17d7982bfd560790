"""``condiff tie`` and ``condiff companions``: a companion of a run's pictures, trained and drawn in every direction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from condiff.cli.options import Flag, Many, OptionalInt, OptionalText, RunFolder, Several, flat
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Tie:
    """Tie a run's pictures to a companion of theirs (edges, depth, a sketch): one adapter for all directions (unicon).

    Try:
      condiff tie runs/cells --data cells/ --data outlines/ --name outline --out runs/outline
      condiff companions runs/outline --known outline=new/ --out made/
    """

    folder: RunFolder
    """The trained run of pictures; it is left as it is."""

    data: Many = ()
    """Folders: the pictures, then their companions, matched by name."""

    name: str = "companion"
    """What the companion is called."""

    out: Path = Path("runs/tied")
    """The new run's folder."""

    rank: int = 16
    """Of the low-rank weights."""

    apart: Flag = False
    """Companions are natural pictures that aren't aligned place by place (the same subject, another view)."""

    steps: int = 2000
    """Training steps."""

    batch: int = 64
    """Pairs a step."""

    lr: float = 1e-3
    """Peak learning rate."""

    seed: int = 0
    """Seed of data order, times and noise."""

    quiet: Flag = False
    """No progress."""

    def run(self) -> int:
        from condiff.methods.tying import tie
        from condiff.training import TrainConfig

        training = TrainConfig(steps=self.steps, batch=self.batch, lr=self.lr, seed=self.seed)
        paths = [path for path in flat(self.data)]
        how = {"training": training, "rank": self.rank, "aligned": not self.apart, "quiet": self.quiet}
        status = tie(self.folder, paths, self.name, self.out, **how)
        if not status.stopped:
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
    """

    folder: RunFolder
    """A run of `condiff tie`."""

    known: Several = ()
    """NAME=PATH of what is known, a picture or a folder; everything else is made."""

    hold: Several = ()
    """NAME=R: a known one that is followed coarsely only, the more so the smaller R is (0 < R <= 1)."""

    num: OptionalInt = None
    """How many, where nothing is known."""

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
        from condiff.methods.tying import draw

        made = draw(
            self.folder,
            self.out,
            known=self.known,
            hold=self.hold,
            num=self.num,
            steps=self.steps,
            solver=self.solver,
            seed=self.seed,
            device=self.device,
            overwrite=self.overwrite,
        )
        if self.json:
            show_json(made)
        else:
            note(f"{made['num']} pair{'' if made['num'] == 1 else 's'}, {made['seconds']:.2f} s: {made['out']}")
        return 0
