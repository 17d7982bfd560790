"""``condiff train``: what it understood of the data, the configuration, the run, and where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from condiff.cli.options import (
    Flag,
    Many,
    OptionalFloat,
    OptionalInt,
    OptionalPath,
    OptionalText,
    Several,
    Source,
    flat,
)
from condiff.cli.output import Progress, note, show_json, summary


@dataclass(frozen=True)
class Train:
    """Train a conditional model on data, then sample and evaluate it.

    Try:
      condiff train digits
      condiff train images --data cells/ --size 64
      condiff train images --data cells/ --size 64 --held-out others/
      condiff train arrays --data waves.npz --method edm --steps 5000
      condiff train text --data corpus.txt
      condiff train text --data corpus.txt --tokenizer bpe --length 128
      condiff train video --data clips/ --given 1 --size 64 --method ca2-vdm
      condiff train series --data load.csv --freq H --horizon 24
      condiff train volumes --data scans/ --target t2 --condition t1 pd --method cwdm
      condiff train digits --joint label
      condiff train digits --set network.width=128 --set training.ema=[0.99,0.999]
      condiff train --resume runs/digits
    """

    source: Source = None
    """Kind of data: digits (bundled), images, pairs, halves, triplets, unpaired, volumes, video, text, series, arrays,
    hub."""

    data: Several = ()
    """Folder, file or Hub name; twice for pairs (degraded, then clean) and unpaired (source, then target)."""

    size: OptionalInt = None
    """Resize and crop images to SIZE x SIZE."""

    labels: OptionalText = None
    """Where labels come from: "folders", a CSV of file,label, a column or key, or "none"."""

    length: OptionalInt = None
    """Tokens of a sample of text; 64 by default."""

    tokenizer: OptionalText = None
    """"char", "bpe" (learnt from the text), or a tokenizer's .json file; "char" by default."""

    freq: OptionalText = None
    """Of series: their frequency, such as H, D or 15min."""

    horizon: OptionalInt = None
    """Of series: how many steps are to be forecast."""

    context: OptionalInt = None
    """Of series: how many steps before are given; 336 hours or 360 days by default."""

    target: OptionalText = None
    """Of volumes: the modality that is to be made, as the files' names say it."""

    condition: Many = ()
    """Of volumes: the modalities that it is made from."""

    given: OptionalInt = None
    """Of video: the first frames that a clip is continued from; 1 by default."""

    frames: OptionalInt = None
    """Of video: the length of a clip; 17 by default."""

    held_out: Many = ()
    """Share of the data that is kept for judging, 0 for none, or other data; a tenth by default."""

    joint: Many = ()
    """Conditions that are generated beside the samples, jointly: label, for instance."""

    option: Several = ()
    """KEY=VALUE for any option of the data, such as flip=true, range=[0,1] or cond=["age"]."""

    skip_bad: Flag = False
    """Leave out files that can't be read instead of stopping at them."""

    method: OptionalText = None
    """The method, as `condiff methods` lists it; flow-matching by default, radd for text."""

    steps: OptionalInt = None
    """Training steps; of each stage, where there are several."""

    batch: OptionalInt = None
    """Samples a step, over all processes."""

    lr: OptionalFloat = None
    """Peak learning rate."""

    seed: OptionalInt = None
    """Seed of initialisation, data order and noise."""

    guidance: OptionalFloat = None
    """Classifier-free scale when sampling; 1 is none."""

    out: OptionalPath = None
    """Run folder (runs/, then the name of the data, by default); it must not exist yet."""

    config: OptionalPath = None
    """YAML or JSON file with any part of the configuration."""

    set: Several = ()
    """KEY=VALUE for any field of the configuration, such as network.width=128."""

    resume: OptionalPath = None
    """Continue this run from its newest valid checkpoint."""

    dry_run: Flag = False
    """Show data and configuration, and try them; train nothing."""

    no_trial: Flag = False
    """Don't try a batch, samples and their files before training."""

    json: Flag = False
    """Print the final metrics as JSON; progress goes to standard error."""

    def run(self) -> int:
        from condiff.methods import runs

        if self.resume:
            self._alone()
        run = runs.open_run(self.resume, resume=True) if self.resume else runs.prepare(self._request(), self.dry_run)
        return carry_out(run, dry_run=self.dry_run, trial=not self.no_trial, json=self.json)

    def _alone(self) -> None:
        """A run that is resumed keeps its configuration, so that it ends where it would have ended.

        Raises:
            BadValue: anything that would change it was given as well.
        """
        from condiff.errors import BadValue

        free = ("resume", "dry_run", "no_trial", "json")
        changed = [f.name for f in fields(self) if f.name not in free and getattr(self, f.name) != f.default]
        if changed:
            words = ", ".join("SOURCE" if name == "source" else f"--{name.replace('_', '-')}" for name in changed)
            raise BadValue(f"--resume continues a run with the configuration it has: leave out {words}")

    def _request(self) -> Any:
        from condiff.errors import BadValue
        from condiff.methods.data_request import DataRequest, held_out
        from condiff.methods.runs import Request
        from condiff.methods.settings import parse

        if self.source is None:
            raise BadValue("say what to train on: condiff train digits, condiff train images --data FOLDER, ...")
        options = {"size": self.size} if self.size is not None else {}
        options |= {"skip_bad": True} if self.skip_bad else {}
        words = {"length": self.length, "tokenizer": self.tokenizer, "target": self.target}
        words |= {"freq": self.freq, "horizon": self.horizon, "context": self.context}
        words |= {"given": self.given, "frames": self.frames}
        words |= {"condition": list(flat(self.condition))} if self.condition else {}
        words |= {"joint": list(flat(self.joint))} if self.joint else {}
        options |= {k: v for k, v in words.items() if v is not None}
        self._check_flags([name for name in options if name != "joint"])
        options |= parse(self.option)
        if self.labels is not None:
            options |= self._label_option(options.get("cond", ()))
        flags = {
            "training.steps": self.steps,
            "training.batch": self.batch,
            "training.lr": self.lr,
            "training.seed": self.seed,
            "sampler.guidance": self.guidance,
        }
        return Request(
            data=DataRequest(
                source=self.source, paths=self.data, options=options, held_out=held_out(flat(self.held_out))
            ),
            method=self.method,
            file=self.config,
            overrides={k: v for k, v in flags.items() if v is not None},
            settings=self.set,
            folder=self.out or Path("runs") / self._name(),
        )

    def _check_flags(self, given: Sequence[str]) -> None:
        """
        Raises:
            BadValue: flags of other sources.
        """
        from condiff.data.open import options
        from condiff.errors import BadValue

        known = options(str(self.source))
        flag = lambda name: f"--{name.replace('_', '-')}"
        others = [flag(name) for name in given if name not in known]
        if others:
            own = [flag(f.name) for f in fields(self) if f.name in known and f.name not in ("source", "seed")]
            raise BadValue(
                f"{', '.join(others)}: not for {self.source}, which takes {', '.join(own) or 'no such option'}"
            )

    def _name(self) -> str:
        """What the run is called: after its data."""
        paths = [Path(p) for p in self.data]
        whole = lambda path: self.source == "pairs" or path.is_dir()
        names = [path.name if whole(path) else Path(path.name.removesuffix(".gz")).stem for path in paths]
        return "-to-".join(names) or str(self.source)

    def _label_option(self, cond: Any) -> dict[str, Any]:
        """The option of the source that ``--labels`` stands for; for arrays a condition beside the others."""
        if self.source == "arrays":
            keys = [cond] if isinstance(cond, str) else cond
            return {"cond": {**(keys if isinstance(keys, dict) else {k: k for k in keys}), "label": self.labels}}
        labels = None if str(self.labels).lower() == "none" else self.labels
        return {"labels" if self.source == "images" else "label": labels}


def carry_out(run: Any, *, dry_run: bool, trial: bool, json: bool) -> int:
    """Say what a run is, try it, train it, and say what came of it: the exit code."""
    from condiff.config import tree
    from condiff.peers import Peers, is_first, own_device

    first = is_first()  # of several processes only one speaks and writes
    if first:
        note(run.said_of_data(), quiet=json)
        note(f"\nconfiguration\n{tree(run.config(), 1)}\n", quiet=json)
    peers = Peers(own_device())  # for the trial and the training
    try:
        if trial:
            run.rehearse(write=not dry_run)
            if first:
                note("tried: a batch, samples in few steps, their figures and files", quiet=json)
        if dry_run:
            run.recipe.denoiser()  # what can't be built is refused here too
            return 0
        status = run.train()
    finally:
        peers.close()
    if status.stopped:
        if first:
            where = f"step {status.step}" + (f" of stage {status.stage}" if status.stage else "")
            note(f"stopped after {where}: condiff train --resume {run.folder} continues", quiet=json)
        return status.exit_code
    if first:
        note(f"\nsampling and evaluating (cut short, condiff evaluate {run.folder} does it again)", quiet=json)
        metrics = run.finish(progress=Progress())
        show_json(metrics) if json else note(summary(metrics, run.folder))
    return 0
