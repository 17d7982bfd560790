"""Runs: from a request to a folder that explains itself, and back from the folder to samples.

``runs/NAME/`` holds ``config.json`` (recipe, data, versions, seeds), ``metrics.jsonl`` (a line per step),
``checkpoints/``, ``model.safetensors`` with ``model-ema.safetensors`` beside it, and after :meth:`RunFolder.finish`
``metrics.json``, ``samples.png`` (or ``samples.txt``), ``curves.png`` and ``report.html``. Runs on text keep their
``tokenizer.json``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from condiff import figures
from condiff.config import from_config, read_json, to_config, tree
from condiff.data import Data
from condiff.distill import Chain, Stage, stage_folder
from condiff.errors import BadFile, BadValue, CondiffError
from condiff.files import replacing, write_json
from condiff.methods import report, settings
from condiff.methods.catalogue import find
from condiff.methods.data_request import DataRequest
from condiff.methods.drawing import draw_samples
from condiff.methods.facts import Facts
from condiff.methods.kinds import Kind, kept_options, kind_of, recalled
from condiff.methods.recipe import Recipe
from condiff.methods.trial import Trial
from condiff.model_files import load_model
from condiff.peers import is_first, own_device
from condiff.training import Status, TrainConfig, Trainer


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``condiff train`` was asked for."""

    data: DataRequest
    method: str | None = None
    file: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    folder: Path = Path("runs/run")

    def recipe(self, data: Data) -> Recipe:
        """The method's recipe for the data, with what the file, the flags and the settings say, in that order."""
        kind = kind_of(data)
        method = self.method or kind.default_method
        recipe = find(method).recipe(Facts.of(data))
        changes = settings.read_file(self.file) if self.file else {}
        changes = {**changes, **self.overrides, **settings.parse(self.settings)}
        shared = {k: v for k, v in changes.items() if k.startswith("training.")}
        recipe = settings.apply(recipe, shared)
        asked = {k.split(".")[1]: getattr(recipe.training, k.split(".")[1]) for k in shared}
        stages = tuple(replace(s, training=fitted(replace(s.training, **asked), asked)) for s in recipe.stages)
        recipe = replace(recipe, training=fitted(recipe.training, asked), stages=stages)
        recipe = settings.apply(recipe, {k: v for k, v in changes.items() if k not in shared})
        kind.check_process(data, recipe.process, method)
        return recipe


def fitted(training: TrainConfig, asked: Mapping[str, Any] = MappingProxyType({})) -> TrainConfig:
    """With a warm-up that a short run gets to the end of, unless one was asked for."""
    if "warmup" in asked or training.warmup <= training.steps // 10:
        return training
    return replace(training, warmup=training.steps // 10)


FEW = 8  # samples that are drawn where there is nothing to judge them by


class RunFolder:
    """A run: its recipe, its data and its folder."""

    def __init__(
        self, folder: Path, recipe: Recipe, request: DataRequest, data: tuple[Data, Data | None], resume: bool = False
    ) -> None:
        self.folder, self.whole, self.request, self.resume = folder, recipe, request, resume
        self.recipe = recipe.last  # of the model that is drawn from
        self.data, self.unseen = data
        self.heldout = self.data if self.unseen is None else self.unseen  # where conditions of samples come from
        self.kind: Kind = kind_of(self.data)
        self.weights = folder  # where the model lies: the run itself, or one of its checkpoints

    def config(self) -> dict[str, Any]:
        """The configuration, as it is printed and stored."""
        return to_config(self.whole)

    def rehearse(self, write: bool = True) -> None:
        """Try a batch, samples, their figures and files; see :class:`condiff.methods.trial.Trial`."""
        Trial(self).go(write)

    def train(self, quiet: bool = False) -> Status:
        """Train to the end or to a signal; resumes when the run was opened for that."""
        recipe = self.whole
        if is_first():
            for name, text in self.kind.kept(self.data).items():
                with replacing(self.folder / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        start, data = recipe.denoiser(recipe.training.seed), recipe.encoded(self.data)
        how: dict[str, Any] = {"resume": self.resume, "quiet": quiet, "extra": self.note()}
        how["validation"] = None if self.unseen is None else recipe.encoded(self.unseen)
        if recipe.stages:
            extras = {stage.name: self.note(recipe.of_stage(stage.name)) for stage in recipe.chain()}
            return Chain(start, data, recipe.chain(), self.folder, sample=self._look_at, extras=extras, **how).fit()
        trainer = Trainer(start, data, recipe.objective, recipe.training, self.folder, sample=self._look, **how)
        return trainer.fit()

    def note(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """What config.json says of a recipe (this run's, or that of one of its stages) and of the data."""
        return {
            "recipe": to_config(recipe or self.whole),
            "request": self.request.stored(),
            "remembered": {"kind": type(self.kind).__name__, **self.kind.remembered(self.data)},
        }

    def model(self, weights: str = "ema", device: Any = None) -> Any:
        """The trained model: a denoiser of values or of tokens."""
        return load_model(self.weights, weights, device=check_device(device or default_device()))

    def finish(
        self,
        against: Sequence[str | Path] = (),
        num: int | None = None,
        seed: int = 0,
        *,
        weights: str = "ema",
        device: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Sample, evaluate, and write metrics.json, the pictures and the report page; returns the metrics.

        Samples are compared with other data, or with what was held out; where nothing was, they are only looked at.
        ``progress`` is called with (steps that are done, all steps) behind each.

        Raises:
            BadFile: the data that the run was trained on isn't here, or has changed.
        """
        self.data.batch([0])  # a run without its data has no rows
        unseen = self.request.other(against, self.data) if against else self.unseen
        heldout, model = unseen or self.heldout, self.model(weights, device)
        num = (self.kind.judged(heldout) if unseen else FEW) if num is None else num
        made = draw_samples(model, self.recipe, heldout, num=num, seed=seed, progress=progress)
        scores = self.kind.score(made, model, heldout, self) if unseen else {"samples": made.num}
        metrics = {
            **scores,
            "nfe": made.nfe if made.calls is None else float(made.calls.double().mean()),
            "sample_seconds": round(made.seconds, 3),
            "train_seconds": self._seconds(),
        }
        write_json(self.folder / "metrics.json", metrics)
        shown = self.kind.shown(self.data)
        seen = draw_samples(model, self.recipe, self.heldout, num=shown, seed=0, progress=progress) if shown else made
        self._page(metrics, self.kind.show(seen, self.folder / "samples", self), self._curves())
        return metrics

    def need_unseen(self) -> Data:
        """The data that was held out.

        Raises:
            BadValue: nothing was.
        """
        if self.unseen is None:
            raise BadValue(f"{self.folder} was trained with --held-out 0: nothing is left to judge it by")
        return self.unseen

    def said_of_data(self) -> str:
        """What the data is and what of it is held out, in lines."""
        lines = [self.data.describe()]
        if self.unseen is None:
            lines.append("nothing held out: no validation loss, and samples are looked at but not judged")
        else:
            few = min(self.kind.judged(self.unseen), len(self.data)) < self.kind.fewest
            why = f": fewer than the {self.kind.fewest} that figures need (--held-out SHARE or PATH)" if few else ""
            s = "" if len(self.unseen) == 1 else "s"
            chosen = f" ({self.unseen.chosen})" if self.unseen.chosen else ""
            lines.append(f"held out: {len(self.unseen)} sample{s}{chosen}{why}")
        return "\n".join(lines)

    def _log(self) -> list[dict[str, Any]]:
        """The lines of all trainings, one after the other: steps and seconds go on counting."""
        lines: list[dict[str, Any]] = []
        for folder in self._trainings():
            path, last = folder / "metrics.jsonl", lines[-1] if lines else {"step": 0, "time": 0.0}
            for line in path.read_text().splitlines() if path.is_file() else []:
                here = json.loads(line)
                lines.append({**here, **{k: here[k] + last[k] for k in ("step", "time") if k in here and k in last}})
        return lines

    def _trainings(self) -> list[Path]:
        if not self.whole.stages:
            return [self.folder]
        return [stage_folder(self.folder, stage.name) for stage in self.whole.chain()]

    def _seconds(self) -> float:
        return next((line["time"] for line in reversed(self._log()) if "time" in line), 0.0)

    def _look_at(self, stage: Stage, denoiser: Any, step: int, folder: Path | None) -> None:
        self._look(denoiser, step, folder, self.whole.of_stage(stage.name))

    def _look(self, denoiser: Any, step: int, folder: Path | None, recipe: Recipe | None = None) -> None:
        """What samples look like during training."""
        shown = self.kind.shown(self.data)
        if folder is not None and shown:
            made = draw_samples(denoiser, recipe or self.recipe, self.heldout, num=shown, seed=0)
            self.kind.show(made, folder / "samples" / f"step-{step:06d}", self)

    def _curves(self) -> Path | None:
        lines = self._log()
        if not lines:
            return None
        panels = {"loss": {"x": [r["step"] for r in lines], "training": figures.smooth([r["loss"] for r in lines])}}
        checks = [r for r in lines if "validation_loss" in r]
        if len(checks) > 1:
            panels["validation loss"] = {
                "x": [r["step"] for r in checks],
                "held out": [r["validation_loss"] for r in checks],
            }
        panels["gradient norm"] = {"x": [r["step"] for r in lines], "norm": [r["grad_norm"] for r in lines]}
        panels["learning rate"] = {"x": [r["step"] for r in lines], "lr": [r["lr"] for r in lines]}
        return figures.curves(panels, self.folder / "curves.png")

    def _page(self, metrics: Mapping[str, Any], samples: Path | None, curves: Path | None) -> None:
        folder = self.folder
        report.write(
            folder / "report.html",
            title=f"{self.recipe.method} on {self.data.name}",
            subtitle=f"condiff run {folder.name}: {self.recipe.training.steps} steps, seed {self.recipe.training.seed}",
            metrics=metrics,
            pictures=[(name, path) for name, path in (("Samples", samples), ("Training", curves)) if path is not None],
            data=self.data.describe(),
            config=tree(self.config()),
            commands=[f"condiff sample {folder}", f"condiff evaluate {folder}", f"condiff cite {self.recipe.method}"],
        )


def prepare(request: Request, dry: bool = False) -> RunFolder:
    """A new run; a dry one only looks, so its folder may exist.

    Raises:
        BadFile: the folder exists: nothing is ever overwritten.
    """
    check_folder(request.folder, dry)
    data = request.data.open()
    return RunFolder(request.folder, request.recipe(data[0]), request.data.absolute(), data)


def check_folder(folder: Path, dry: bool = False) -> None:
    """
    Raises:
        BadFile: the folder of a new run exists.
    """
    if not dry and is_first() and (folder.is_file() or (folder.exists() and any(folder.iterdir()))):
        hint = f", or go on with it: condiff train --resume {folder}" if (folder / "config.json").is_file() else ""
        raise BadFile(f"{folder} exists already: choose another --out{hint}")


def read_run(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run, or of the run that a checkpoint belongs to, and its config.json.

    Raises:
        BadFile: the folder isn't a run.
    """
    if (folder / "state.json").is_file():  # a checkpoint of a run
        folder = folder.resolve().parent.parent
    if not (folder / "config.json").is_file():
        raise BadFile(f"{folder} isn't a run: there is no such file: {folder / 'config.json'}")
    config = read_json(folder / "config.json")
    if "tie" in config:
        raise BadFile(f"{folder} is a run tied to another: draw from it with `condiff companions {folder}`")
    if "recipe" not in config or "request" not in config:
        raise BadFile(f"{folder} holds a model, not a run of `condiff train`: there is no recipe in its config.json")
    return folder, config


def open_run(folder: Path, resume: bool = False) -> RunFolder:
    """A run that exists.

    Where its data isn't here any more, or isn't what it was, the run is used by what it remembers of it: samples and
    forecasts need no more, and what does says so. A run that is resumed needs its data.

    Raises:
        BadFile: the folder isn't a run; the data of one that is resumed has changed.
    """
    weights = folder
    folder, config = read_run(folder)
    request = DataRequest.of(config["request"])
    kept = replace(request, options=kept_options(request.source, request.options, folder))
    mark, data = config.get("data", {}).get("fingerprint"), None
    if kept.is_here() or "remembered" not in config:
        try:
            data = _as_trained(folder, kept, mark)
        except CondiffError as error:
            if resume or "remembered" not in config:
                raise
            warnings.warn(f"{error}. What needs the data, such as an evaluation, won't work", stacklevel=2)
    if data is None:
        one = recalled(config["remembered"], kept.options)
        data = (one, one)
    run = RunFolder(folder, from_config(config["recipe"]), kept, data, resume=resume)
    run.weights = weights
    return run


def _as_trained(folder: Path, request: DataRequest, mark: str | None) -> tuple[Data, Data | None]:
    """The data of a run.

    Raises:
        BadFile: it isn't what the run was trained on, by its fingerprint.
    """
    data = request.open()
    if mark and mark != data[0].fingerprint():
        raise BadFile(f"the data of {folder} has changed since it was trained on: {' '.join(request.paths)}")
    return data


def default_device() -> str:
    """This process's GPU if there is one."""
    return str(own_device())


def check_device(name: Any) -> torch.device:
    """The device of a name.

    Raises:
        BadValue: no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without it says so by an assertion
        raise BadValue(f"no device {str(name)!r} here ({str(error).splitlines()[0][:100]}): cpu is there") from error
    return device
