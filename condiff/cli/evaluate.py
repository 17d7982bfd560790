"""``condiff evaluate``: distances, coverage, memorisation of a run's samples, and its report page."""

from __future__ import annotations

from dataclasses import dataclass

from condiff.cli.options import Flag, OptionalInt, OptionalText, RunFolder, Several
from condiff.cli.output import Progress, note, show_json, summary


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained run against held-out data; rewrites its metrics.json and report.html.

    Try:
      condiff evaluate runs/digits
      condiff evaluate runs/cells --against cells_heldout/ --num 2000
    """

    folder: RunFolder
    """The run folder."""

    against: Several = ()
    """Held-out data of the same kind, twice for pairs and unpaired; the run's own held-out part by default."""

    num: OptionalInt = None
    """How many samples to draw; as many as there are held-out ones by default."""

    seed: int = 0
    """Seed of the samples."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    json: Flag = False
    """Print the metrics as JSON."""

    def run(self) -> int:
        from condiff.methods import runs

        run = runs.open_run(self.folder)
        if not self.against:
            run.need_unseen()
        how = {"weights": self.weights, "device": self.device, "progress": Progress()}
        metrics = run.finish(against=self.against, num=self.num, seed=self.seed, **how)
        if self.json:
            show_json(metrics)
        else:
            note(summary(metrics, run.folder))
        return 0
