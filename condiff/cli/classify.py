"""``condiff classify``: a trained conditional model as a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from condiff.cli.options import Flag, OptionalInt, OptionalPath, OptionalText, RunFolder, Several, SomePath
from condiff.cli.output import note, show_json


@dataclass(frozen=True)
class Classify:
    """Which class, or prompt, is each sample denoised best with? No training.

    Try:
      condiff classify runs/digits
      condiff classify runs/cells new_cells/ --levels 50 --json
      condiff classify runs/digits --stage 5:3 --stage 50:1
      condiff classify pipelines/sd-2-base photos/ --prompts prompts.csv --stage 50:5 --stage 500:1 --loss l1
    """

    folder: RunFolder
    """A run with classes; or, with --prompts, a saved diffusers pipeline."""

    images: SomePath = None
    """A picture or a folder of them; the run's held-out data by default."""

    prompts: OptionalPath = None
    """A CSV table with the columns prompt, classname and classidx, for a pipeline."""

    levels: int = 20
    """Noise levels at which every candidate is compared."""

    stage: Several = ()
    """LEVELS:KEEP instead; repeat it: the best KEEP go on, the last keeps 1."""

    loss: Literal["l2", "l1", "huber"] = "l2"
    """How errors are measured."""

    target: str = "noise"
    """What is compared: noise, x0, v, or velocity for flow models."""

    weight: Literal["uniform", "elbo"] = "uniform"
    """Of the levels; elbo makes probabilities those of Bayes' rule."""

    num: OptionalInt = None
    """At most that many samples."""

    seed: int = 0
    """Of the noise, which all candidates share."""

    batch: int = 256
    """Evaluations per network call."""

    weights: str = "ema"
    """"ema", "raw", or the name of an averaged copy."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, mps."""

    out: OptionalPath = None
    """Folder for classify.json and reliability.png; the run by default."""

    json: Flag = False
    """Print the figures as JSON."""

    def run(self) -> int:
        from condiff.errors import BadValue
        from condiff.methods.classification import Request, classify_pipeline, classify_run, read_stages

        request = Request(
            stages=read_stages(self.stage) or ((self.levels, 1),),
            loss=self.loss,
            target=self.target,
            weight=self.weight,
            num=self.num,
            seed=self.seed,
            batch=self.batch,
            weights=self.weights,
            device=self.device,
        )
        if self.prompts is None:
            facts = classify_run(self.folder, self.images, request, self.out)
        elif self.images is None:
            raise BadValue("--prompts classifies pictures: name one, or a folder of them, after the pipeline")
        else:
            facts = classify_pipeline(self.folder, self.images, self.prompts, request, self.out)
        if self.json:
            show_json(facts)
        else:
            note("\n".join(_lines(facts)))
        return 0


def _lines(facts: dict) -> list[str]:
    lines = [f"{facts['samples']} samples, {facts['evaluations']} network evaluations each, {facts['seconds']:.1f} s"]
    for name in ("accuracy", "mean_class_accuracy", "calibration_error"):
        if name in facts:
            lines.append(f"  {name.replace('_', ' '):<20} {facts[name]:.4f}")
    if "confusion" in facts:
        lines += ["  true class, and how often each was predicted", *_table(facts["classes"], facts["confusion"])]
    for one in facts.get("predictions", ()):
        sure = "" if one["probability"] is None else f"  {one['probability']:.3f}"
        lines.append(f"  {one['image']}  {one['class']}{sure}")
    written = [facts["written"], *([facts["reliability"]] if "reliability" in facts else [])]
    return [*lines, f"written: {', '.join(written)}"]


def _table(classes: list[str], counts: list[list[int]]) -> list[str]:
    if len(classes) > 20:
        return [f"    {len(classes)} classes: see the JSON file"]
    width = max(len(name) for name in classes)
    return [
        f"    {name:<{width}}  " + " ".join(f"{n:4d}" for n in row) for name, row in zip(classes, counts, strict=True)
    ]
