"""Trainer: the loop around an objective, and what it promises.

* A step is a function of the weights, the seed and its number (see :mod:`condiff.training.engine`). So a resumed run
  equals an undisturbed one bit for bit (on a CPU), and two processes see the loss curve of one.
* Files are whole or absent: a ``kill -9``, a full disk or a loss that is not a number leaves the last checkpoint.
* A run folder explains itself: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, and at the end
  ``model.safetensors`` with ``model-ema.safetensors`` beside it.
"""

from __future__ import annotations

import dataclasses
import inspect
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from condiff.errors import BadFile, BadType, BadValue, unknown
from condiff.files import alone_in
from condiff.model_files import save_model
from condiff.training.batch import Batch, as_batch, each
from condiff.training.checkpoint import Checkpoints
from condiff.training.config import TrainConfig
from condiff.training.engine import Engine
from condiff.training.log import Clock, Log, Progress, wandb_module
from condiff.training.objective import Denoising
from condiff.training.order import Loader, Order, fetcher, share
from condiff.training.parallel import Parallel
from condiff.training.run_folder import claim, describe_run
from condiff.training.snapshot import pack, restore, weights_of
from condiff.training.stop import StopRequest
from condiff.training.watch import Watch


class Status(NamedTuple):
    """How :meth:`Trainer.fit` ended: at which step (of which stage), and whether a signal stopped it (and which)."""

    step: int
    stopped: bool = False
    signal: int | None = None
    stage: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or what a shell expects of a process that a signal ended."""
        return 0 if self.signal is None else 128 + self.signal


class Trainer:
    """Train a denoiser on data.

    Args:
        denoiser: a module with the Denoiser interface; it is trained in place.
        data: has a length and ``batch(indices[, epoch])`` or ``[i]``, giving mappings as :func:`as_batch` takes.
        objective: ``(denoiser, batch, rng, training) -> Losses``. May be a module with weights of its own; may have
            ``begin(step, steps)``, called before each step, and ``done``, which ends the training once it is true.
        config: how.
        run_dir: the run's folder; None writes no files.
        validation: data whose loss is watched, with the same times and noise at every look.
        sample: ``sample(denoiser, step, folder)``, called with the averaged weights every ``sample_every`` steps.
        resume: continue the run in ``run_dir``.
        quiet: no progress.
        extra: further entries of config.json.
        optimizer: ``parameter groups -> Optimizer`` instead of AdamW.
        device: where to train; by default a GPU if there is one.

    Raises:
        BadFile: a run is there already, or nothing is there to resume; a damaged checkpoint.
        BadValue: data that doesn't fit the denoiser.
        Incompatible: resuming with another model, objective, configuration or data.

    A full run, and the same continued after a power cut::

        Trainer(denoiser, data, Denoising(), TrainConfig(steps=2000), "runs/mine").fit()
        Trainer(denoiser, data, Denoising(), TrainConfig(steps=2000), "runs/mine", resume=True).fit()
    """

    def __init__(
        self,
        denoiser: nn.Module,
        data: Any,
        objective: Any = None,
        config: TrainConfig | None = None,
        run_dir: str | Path | None = None,
        *,
        validation: Any = None,
        sample: Callable[[nn.Module, int, Path | None], Any] | None = None,
        resume: bool = False,
        quiet: bool = False,
        extra: Mapping[str, Any] | None = None,
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        device: Any = None,
    ) -> None:
        if not isinstance(denoiser, nn.Module):
            raise BadType(f"a denoiser to train is a module, got {type(denoiser).__name__}")
        if config is not None and config.wandb:
            wandb_module()  # absent: said now, not after the folder is claimed
        self.objective = Denoising() if objective is None else objective
        if isinstance(self.objective, Denoising) and not hasattr(denoiser, "process"):
            raise BadType(
                f"a {type(denoiser).__name__} says nothing of a process: wrap it, Denoiser(network, process, target)"
            )
        self.config = config = TrainConfig() if config is None else config
        self.denoiser, self.data, self.validation, self.sample = denoiser, data, validation, sample
        self.folder, self.quiet = None if run_dir is None else Path(run_dir), quiet
        self.kinds = {**getattr(data, "kinds", {}), **getattr(denoiser, "kinds", {})}
        fetcher(data)  # refuses what isn't data
        order = Order(len(data), config.batch, config.seed)
        self._check_rows(data)
        if validation is not None:
            self._check_rows(validation)
        self.parallel = Parallel(config.parallel, device, config.precision)
        self.engine = Engine(denoiser, self.objective, config, self.parallel, optimizer)
        self.loader = Loader(data, order, self.engine.parts, self.engine.mine)
        self.step, self.seconds, self.best = 0, 0.0, None
        self.record = describe_run(denoiser, self.objective, config, data, extra or {})
        if self.folder is not None:
            self.checkpoints = Checkpoints(self.folder / "checkpoints", config.keep_last)
            claim(self.folder, self.record, resume, self.parallel)
            self._take_up()
        elif resume:
            raise BadValue("resume=True needs run_dir=, the run to continue")
        self.history: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        loss = f", loss {self.history[-1]['loss']:.4g}" if self.history else ""
        return f"{type(self).__name__}(step {self.step} of {self.config.steps}{loss}, folder {self.folder})"

    def _check_rows(self, data: Any) -> None:
        """Data that doesn't fit is refused before anything is written."""
        batch = as_batch(fetcher(data)(torch.arange(min(2, len(data))), 0), self.kinds)
        check = getattr(self.denoiser, "check_batch", None)
        if check is not None:  # its data aren't its state
            check(batch)
            return
        wanted, got = getattr(self.denoiser, "shape", None), each(lambda x: tuple(x.shape[1:]), batch.x)
        if wanted is not None and got != each(tuple, wanted):
            raise BadValue(f"the data has samples of shape {got}, the denoiser of {each(tuple, wanted)}")

    def _take_up(self) -> None:
        """Continue from the newest valid checkpoint, or write the first: how weights were made doesn't matter then."""
        found = self.checkpoints.newest(warn=lambda message: warnings.warn(message, stacklevel=5))
        if found is None:
            self.save()
            return
        path, state = found
        restore(self.engine, path, state)
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]

    def fit(self) -> Status:
        """Train to the last step, or until a signal.

        Returns:
            The step reached. On SIGTERM and SIGINT the step in progress is finished and saved first (with several
            processes on GPUs: the steps up to the next report).

        Raises:
            NonFinite: the loss or a gradient is not a number; the last checkpoint is untouched.
            BadFile: a checkpoint can't be written; earlier ones are untouched.
        """
        with alone_in(self.folder if self.parallel.main else None, "training"):
            return self._run()

    def rehearse(self) -> None:
        """Try what a training does, without doing it: the first batch forwards and backwards, and the validation.

        Raises:
            NonFinite: the loss or the gradient of the first batch is not a number.
        """
        with self.engine.training():
            batches = (as_batch(raw, self.kinds) for raw in self.loader.iterate(0, 1, 0, pin=False))
            watch = Watch(self)
            watch.add(1, *self.engine.rehearse(batches))
            watch.flush()
            if self.validation is not None:
                self.validate()

    def _run(self) -> Status:
        config, main = self.config, self.parallel.main
        boards = {"tensorboard": config.tensorboard, "wandb": config.wandb, "config": self.record}
        self.log = Log(self.folder if main else None, self.step, **boards)
        self.history = self.log.history
        self.progress = Progress(config.steps, self.quiet or not main)
        try:
            with StopRequest() as stop, self.engine.training():
                return self._loop(stop)
        finally:
            self.progress.close()
            self.log.close()
            self.parallel.close()

    def _loop(self, stop: StopRequest) -> Status:
        config, cpu = self.config, self.engine.device.type == "cpu"
        raws = self.loader.iterate(self.step, config.steps, config.workers, pin=not cpu)
        batches: Iterator[Batch] = (as_batch(raw, self.kinds) for raw in raws)
        self.watch, self.clock = Watch(self), Clock(config, self.step, self.seconds)
        while not self._over:
            losses, norm = self.engine.advance(self.step, batches)
            self.step += 1
            self.watch.add(self.step, losses, norm)
            report, save = self._due(config.log_every), self._due(config.save_every)
            if cpu or report or save:
                # Looking makes a GPU wait for the host, so there it is done at reports only.
                stopping = self.parallel.any(stop.requested)
                improved = self._look(report)
                if save or stopping or improved:
                    self.save()
                if stopping and not self._over:
                    return Status(self.step, True, stop.signal or signal.SIGTERM)  # the signal may be another process's
            if self.sample is not None and self._due(config.sample_every):
                self._show_samples(self.sample)
        if self.folder is not None:
            self._finish(self.folder)
        return Status(self.step)

    @property
    def _over(self) -> bool:
        return self.step >= self.config.steps or bool(getattr(self.objective, "done", False))

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self._over)

    # Looking

    def _look(self, report: bool) -> bool:
        """Write the lines of the steps since the last look, after checking that they are finite.

        Returns:
            Whether the validation loss is the best so far.
        """
        records = self.watch.flush()
        speed, left = self.clock.read(self.step)
        facts = {"images_per_s": round(speed, 2), "time": round(self.clock.seconds(), 4)}
        records = [record | facts for record in records]
        improved = False
        if self.validation is not None and self._due(self.config.validate_every or self.config.save_every):
            records[-1]["validation_loss"] = value = self.validate()
            improved = self.best is None or value < self.best["validation_loss"]
            self.best = {"step": self.step, "validation_loss": value} if improved else self.best
        for record in records:
            self.log.write(record)
        if report:
            self.log.scalars(records[-1])
        self.progress.show(self.step, records[-1]["loss"], speed, left, report)
        return improved

    def validate(self) -> float:
        """The loss on the validation data, with the averaged weights and always the same times and noise."""
        size = min(len(self.validation), self.config.validation_size)
        fetch, total = fetcher(self.validation), torch.zeros((), dtype=torch.float64, device=self.engine.device)
        with self.engine.judged("validation"):
            for index, rows in enumerate(torch.arange(size).split(self.config.batch)):
                part, parts, counts = self._validated(len(rows))
                first, last = share(len(rows), part, parts)
                batch = as_batch(fetch(rows[first:last], 0), self.kinds)
                source = self.engine.source(part, parts, len(rows), "validation", index)
                total += self.engine.loss(batch, source).double() * len(batch) * counts
        return float(self.parallel.total(total)) / size

    def _validated(self, rows: int) -> tuple[int, int, bool]:
        """This process's part of some rows, of how many parts, and whether it counts: where there are fewer rows than
        processes, those that are left over look at the first row too, since sharded weights are used by all or none."""
        world, rank = self.parallel.world, self.parallel.rank
        if rows >= world:
            return rank, world, True
        return (rank, rows, True) if rank < rows else (0, rows, False)

    def _show_samples(self, sample: Callable[[nn.Module, int, Path | None], Any]) -> None:
        """Call the sample callback; with sharded weights in all processes, of which the first has the folder."""
        if self.parallel.main or self.parallel.sharded:
            with self.engine.judged("sample", self.step) as denoiser:
                sample(denoiser, self.step, self.folder if self.parallel.main else None)
        self.parallel.wait()

    # Files

    def save(self) -> None:
        """Write a checkpoint of the present step.

        Raises:
            BadFile: when it can't be written; earlier ones are untouched.
        """
        if self.folder is None:
            return
        files, state = pack(self.engine, self.step)
        seconds = self.clock.seconds() if hasattr(self, "clock") else self.seconds
        state |= {"best": self.best, "seconds": seconds, "rows_seen": self.step * self.config.batch}
        state |= {"versions": self.record["versions"], "training": self.record["training"]}
        problem = None
        if self.parallel.main:
            try:
                if hasattr(self, "log"):
                    self.log.sync()
                self.checkpoints.save(self.step, files, state)
            except BadFile as error:
                problem = error
        if self.parallel.any(problem is not None):
            raise problem or BadFile("the first process could not write a checkpoint")

    def _finish(self, folder: Path) -> None:
        """The model folder, beside the checkpoints."""
        files = weights_of(self.engine, self.step)
        if self.parallel.main:
            averages = {k.removeprefix("ema-"): v[0] for k, v in files.items() if k != "model"}
            save_model(
                folder, self.denoiser, tensors=files["model"][0], ema=averages, extra=self.record, step=self.step
            )
        self.parallel.wait()

    @property
    def ema(self) -> nn.Module:
        """:meth:`averaged`, the default average."""
        return self.averaged()

    def averaged(self, name: str | None = None) -> nn.Module:
        """A copy of the denoiser with averaged weights, in evaluation mode; with the plain ones without averages.

        Raises:
            BadValue: an unknown average, or weights that are sharded over processes.
        """
        if self.parallel.sharded:
            raise BadValue("the weights are sharded over processes: load the run's folder with load_model")
        copy, ema = deepcopy(self.denoiser), self.engine.ema
        if ema is not None:
            copy.load_state_dict(ema.tensors(name or ema.default))
        return copy.eval()


def train(denoiser: nn.Module, data: Any, objective: Any = None, **settings: Any) -> Trainer:
    """Train and return the finished :class:`Trainer`: ``train(denoiser, data, steps=2000).ema`` is the model.

    Args:
        settings: arguments of :class:`Trainer` (``run_dir``, ``validation``, ``quiet`` ...) and fields of
            :class:`TrainConfig` (``steps``, ``batch``, ``lr`` ...), by name.

    Raises:
        SystemExit: a signal ended the training; it is saved, and ``resume=True`` continues it.
        BadValue: an unknown name, with the nearest ones.
    """
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    own = set(inspect.signature(Trainer).parameters) - {"denoiser", "data", "objective"}
    for name in settings:
        if name not in fields | own:
            raise unknown("setting of a training", name, fields | own)
    config = {k: v for k, v in settings.items() if k in fields}
    rest = {k: v for k, v in settings.items() if k in own}
    if config and "config" in rest:
        raise BadValue(f"give either config= or its fields, not both: {', '.join(sorted(config))}")
    rest.setdefault("config", TrainConfig(**config))
    trainer = Trainer(denoiser, data, objective, **rest)
    status = trainer.fit()
    if status.stopped:  # the lines after this one count on a finished training
        raise SystemExit(status.exit_code)
    return trainer
