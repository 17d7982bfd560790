"""A trial before training: one batch forwards and backwards, samples by the stored sampler in very few steps, their
figures and their files.

A recipe that can't be sampled, judged or written would be found out when an hour of training is over. The trial is made
with models of its own and with the draws of their seeds, so that the training after it is the one without it, bit for
bit. Where it fails, what differs from the method's own recipe is put back piece by piece, to name the option at fault.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condiff.config import to_config
from condiff.data import Data, Subset
from condiff.errors import BadFile, BadType, BadValue, CondiffError, Incompatible, MissingExtra, NonFinite
from condiff.methods import settings
from condiff.methods.catalogue import find
from condiff.methods.drawing import draw_samples
from condiff.methods.facts import Facts
from condiff.methods.given import Given
from condiff.methods.recipe import Recipe
from condiff.peers import is_first, own_device
from condiff.training import TrainConfig, Trainer

STEPS = 2  # of the sampler, where it can have so few
ROWS = 64  # of the training data that samples are compared with
MOST_TRIES = 16  # to find what is at fault
SAID = (BadValue, BadType, BadFile, MissingExtra, NonFinite, Incompatible)
FLAGS = {"sampler.guidance": "--guidance", "training.batch": "--batch", "training.lr": "--lr"}
HINTS = {  # what to look at where no one option is at fault
    "building the model": ("network", "target", "process", "sampler"),
    "a training step": ("objective", "network", "training"),
    "sampling": ("sampler", "target"),
}


@dataclass(frozen=True)
class Small:
    """A run with few rows, as kinds of data see it."""

    data: Data
    heldout: Data
    recipe: Recipe
    request: Any


class Trial:
    """The trial of a run.

    Args:
        run: a :class:`condiff.methods.runs.RunFolder`.

    Raises (:meth:`go`):
        BadFile: the folder can't be written, or is too small for a checkpoint.
        BadValue, BadType, MissingExtra, NonFinite: as the part that fails raises it, with the option at fault.
        Incompatible: for other errors of it.
    """

    def __init__(self, run: Any) -> None:
        self.run, self.phase = run, ""
        self.kind = run.kind
        self.few = min(len(run.heldout), self.kind.fewest)
        self.heldout = Subset(run.heldout, _spread(len(run.heldout), self.few), run.heldout.name)
        self.data = Subset(run.data, _with_classes(run.data, ROWS), run.data.name)

    def go(self, write: bool = True) -> None:
        """All of it; without ``write`` nothing is tried in the run's folder."""
        if write and is_first():
            check_writable(self.run.folder)
        with generators_kept():
            try:
                self._through(self.run.whole, write)
            except Exception as error:
                if isinstance(error, BadFile) and self.phase == "room":
                    raise
                raise self._explained(error) from error

    def _through(self, recipe: Recipe, write: bool = False) -> None:
        self.phase = "building the model"
        model = recipe.denoiser(recipe.training.seed).to(own_device())
        data, held = recipe.encoded(self.run.data), recipe.encoded(self.heldout)
        for stage in recipe.chain():
            self.phase = f"stage {stage.name}" if recipe.stages else self.phase
            student = stage.student(model) if recipe.stages else model
            objective = stage.taught(model) if recipe.stages else recipe.objective
            if is_first():
                self._samples(student, recipe.of_stage(stage.name), last=stage == recipe.chain()[-1])
            self.phase = "a training step"
            pupil = stage.trained(model) if recipe.stages else student
            unseen = None if self.run.unseen is None else held
            trainer = Trainer(pupil, data, objective, plain(stage.training), validation=unseen, quiet=True)
            trainer.rehearse()
            if write and is_first():
                self.phase = "room"
                check_room(self.run.folder, pupil, stage.training)
            model = student.eval()

    def _samples(self, model: Any, recipe: Recipe, last: bool) -> None:
        self.phase = "sampling"
        made, recipe = self._draw(model.eval(), recipe, self.few if last else 1)
        if not last:
            return
        small = Small(self.data, self.heldout, recipe, self.run.request)
        self.phase = "judging samples"
        if self.run.unseen is not None:
            self.kind.score(made, model, self.heldout, small)
        self.phase = "writing samples"
        with tempfile.TemporaryDirectory() as place:
            self.kind.show(made, Path(place) / "shown", small)
            self.kind.write(made, Path(place) / f"samples{self.kind.ending}", small, Given({}))

    def _draw(self, model: Any, recipe: Recipe, num: int) -> tuple[Any, Recipe]:
        """Some samples, in few steps where the sampler can do so."""
        few = replace(recipe, sampler=replace(recipe.sampler, steps=min(STEPS, recipe.sampler.steps)))
        try:
            return draw_samples(model, few, self.heldout, num=num, seed=0), few
        except Exception:
            if few == recipe:
                raise
        return draw_samples(model, recipe, self.heldout, num=num, seed=0), recipe

    # What is at fault

    def _explained(self, error: Exception) -> CondiffError:
        phase = self.phase
        hint = ""
        if not out_of_memory(error):
            found = self._at_fault(phase)
            hint = f"without {' or '.join(found)} it works; " if found else ""
            if not found and phase in HINTS:
                hint = f"look at {', '.join(f'--set {part}...' for part in HINTS[phase])}; "
        return explained(error, phase, hint, self.run.whole.training)

    def _at_fault(self, phase: str) -> list[str]:
        """Options whose default in their place lets that phase pass."""
        found = []
        for path, changed in suspects(self.run.whole, self._own()):
            try:
                self._through(changed)
            except Exception:
                if self.phase == phase:
                    continue
            found.append(FLAGS.get(path, f"--set {path}=..."))
        return found

    def _own(self) -> Recipe | None:
        """The method's own recipe for the data."""
        try:
            return find(self.run.whole.method).recipe(Facts.of(self.run.data))
        except CondiffError:
            return None


def explained(error: Exception, phase: str, hint: str, training: TrainConfig) -> CondiffError:
    """An error of a trial, with where it happened and what to do."""
    kind = type(error) if isinstance(error, SAID) else Incompatible
    said = str(error).strip() or type(error).__name__
    if out_of_memory(error):
        return Incompatible(
            f"before training, {phase}: not enough memory ({said.splitlines()[0]}). Use less: a smaller --batch "
            f"(it is {training.batch}), or the same one in parts with accumulate (--set training.accumulate=4)"
        )
    return kind(f"before training, {phase}: {said} ({hint}--no-trial trains without trying)")


def plain(training: TrainConfig) -> TrainConfig:
    """A training without what only pays over many steps, or is told to others."""
    return replace(training, compile=False, wandb=False, tensorboard=False, workers=0)


def suspects(recipe: Recipe, own: Recipe | None) -> Iterator[tuple[str, Recipe]]:
    """What differs from the method's own recipe, and the recipe with each put back."""
    if own is None:
        return
    default = to_config(own)
    for path in differences(to_config(recipe), default)[:MOST_TRIES]:
        value: Any = default
        for key in path.split("."):
            value = value[key]
        try:
            yield path, settings.apply(recipe, {path: value})
        except CondiffError:
            continue


def differences(config: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys at which two configurations differ; of parts of one sort their fields."""
    out = []
    for key, value in config.items():
        if key not in other or value == other[key]:
            continue
        there = other[key]
        both = isinstance(value, Mapping) and isinstance(there, Mapping) and value.get("part") == there.get("part")
        out += differences(value, there, f"{prefix}{key}.") if both else [f"{prefix}{key}"]
    return out


def out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had too little memory."""
    said = str(error)
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in said for word in known)


# The run's folder


def check_writable(folder: Path) -> None:
    """
    Raises:
        BadFile: nothing can be written where the folder is, or is to be made.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file")
        with tempfile.NamedTemporaryFile(dir=there, prefix=".condiff-trial-") as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BadFile(f"{folder} can't be written ({error.strerror or error}): choose another --out") from error


def check_room(folder: Path, model: nn.Module, training: TrainConfig) -> None:
    """
    Raises:
        BadFile: less space than two checkpoints take, one of which is written while the other is there.
    """
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    checkpoint = weights * (1 + len(training.ema)) + 2 * trained
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < 2 * checkpoint:
        need, have = (f"{n / 2**20:,.0f} MB" for n in (2 * checkpoint, free))
        raise BadFile(f"{folder}: two checkpoints take {need}, and {have} are free: make room, or choose another --out")


# Rows


def _spread(n: int, count: int) -> torch.Tensor:
    return torch.linspace(0, n - 1, count, dtype=torch.float64).long()


def _with_classes(data: Data, count: int) -> torch.Tensor:
    """Rows spread over the data, of two classes at least where there are two: judges learn from them."""
    rows = _spread(len(data), min(count, len(data)))
    labels = data.labels
    if labels is None or len(labels[rows].unique()) > 1:
        return rows
    others = torch.nonzero(labels != labels[rows[0]]).flatten()[:1]
    return torch.cat([rows, others])


def generators_kept() -> AbstractContextManager[None]:
    """Inside, torch's global generators may be drawn from; outside, they are as they were."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])
