"""``condiff distill``: a trained run in fewer, cheaper steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from condiff.cli.options import Flag, OptionalFloat, OptionalInt, OptionalPath, RunFolder, Several
from condiff.cli.train import carry_out

Numbers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N...", help_behavior_hint="")]
Range = Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH", help_behavior_hint="")]


@dataclass(frozen=True)
class Distill:
    """Distill a trained run: one network call a step in place of two, and few steps. Guidance becomes an input.

    Try:
      condiff distill runs/digits                          guidance as an input: half the cost, any sampler
      condiff distill runs/digits --steps 4 --out runs/fast
      condiff distill runs/digits --steps 4 2 1 --scale 1 6
      condiff sample runs/fast --guidance 3
      condiff sample runs/fast/stages/steps-8 --guidance 3
      condiff train --resume runs/fast
    """

    folder: RunFolder
    """The trained run; it is left as it is."""

    steps: Numbers = ()
    """Solver steps that are wanted; the new run takes the fewest, the others are among its stages."""

    scale: Range = None
    """Guidance scales that can be asked for; 1 4 by default."""

    start: OptionalInt = None
    """Steps of the first student, halved again and again; at least 32 by default."""

    train_steps: OptionalInt = None
    """Training steps of each stage."""

    batch: OptionalInt = None
    """Samples a training step."""

    lr: OptionalFloat = None
    """Peak learning rate of each stage."""

    seed: OptionalInt = None
    """Seed of data order, noise and scales."""

    stochastic: Flag = False
    """Students of the sampler with fresh noise (two levels down, one up)."""

    lora: OptionalInt = None
    """Train low-rank updates of this rank, merged after each stage, in place of all weights: less memory."""

    guidance: OptionalFloat = None
    """The scale that the new run is sampled with; the old run's by default."""

    set: Several = ()
    """KEY=VALUE for any field of the configuration, such as stages.0.training.lr=1e-4."""

    out: OptionalPath = None
    """Folder of the new run (the old one's with -fast behind it by default); it must not exist yet."""

    dry_run: Flag = False
    """Show the stages, and try them; train nothing."""

    no_trial: Flag = False
    """Don't try a batch, samples and their files before training."""

    json: Flag = False
    """Print the final metrics as JSON; progress goes to standard error."""

    def run(self) -> int:
        from condiff.methods.distilling import Distillation, prepare

        training = {"steps": self.train_steps, "batch": self.batch, "lr": self.lr, "seed": self.seed}
        request = Distillation(
            run=self.folder,
            steps=self.steps,
            scale=self.scale,
            start=self.start,
            training={k: v for k, v in training.items() if v is not None},
            stochastic=self.stochastic,
            lora=self.lora,
            guidance=self.guidance,
            changes=self.set,
            folder=self.out or Path(f"{str(self.folder).rstrip('/')}-fast"),
        )
        run = prepare(request, self.dry_run)
        return carry_out(run, dry_run=self.dry_run, trial=not self.no_trial, json=self.json)
