"""Trainer: the loop around an objective, and what it promises.

* A step is a function of the weights, the seed and its number: data order, times, noise and dropout are drawn from
  generators seeded with (seed, step). So a resumed run equals an undisturbed one bit for bit (on a CPU), and two
  processes see the loss curve of one.
* Files are whole or absent: a ``kill -9``, a full disk or a loss that is not a number leaves the last checkpoint.
* A run folder explains itself: ``config.json``, ``metrics.jsonl``, ``checkpoints/``, and at the end
  ``model.safetensors`` with ``model-ema.safetensors`` beside it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from condiff.config import to_config
from condiff.errors import BadFile, BadType, BadValue
from condiff.files import clear_temporaries, write_json
from condiff.model_files import (
    CONFIG,
    FORMAT,
    RAW,
    check_same,
    check_tensors,
    describe,
    describe_weights,
    save_model,
    versions,
)
from condiff.random import Shard, Source, Stream, derive_seed
from condiff.training.batch import as_batch
from condiff.training.checkpoint import Checkpoints, pack_optimizer, read_file, unpack_optimizer
from condiff.training.config import TrainConfig, fixed_fields
from condiff.training.ema import EMA
from condiff.training.log import Log, Progress
from condiff.training.modules import blocks_of, optimizer_of, recomputing
from condiff.training.nonfinite import Explain
from condiff.training.objective import Denoising, Losses
from condiff.training.order import Loader, Order, fetcher, share
from condiff.training.parallel import Parallel, fill, wholes
from condiff.training.stop import StopRequest


class Status(NamedTuple):
    """How a call of :meth:`Trainer.fit` ended: at which step, and whether a signal stopped it (and which)."""

    step: int
    stopped: bool
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or what a shell expects of a process that ended by the signal."""
        return 0 if self.signal is None else 128 + self.signal


class _Step(nn.Module):
    """Denoiser and objective as one module, so that what wraps a module (DDP, FSDP) wraps the whole computation."""

    def __init__(self, denoiser: nn.Module, objective: Any) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, batch: Any, rng: Source, training: bool = True) -> Losses:
        return self.objective(self.denoiser, batch, rng, training)


class Trainer:
    """Train a denoiser on data.

    Args:
        denoiser: a module with the Denoiser interface; it is trained in place.
        data: has a length and ``batch(indices[, epoch])`` or ``[i]``, giving mappings as :func:`as_batch` takes.
        objective: ``(denoiser, batch, rng, training) -> Losses``. May be a module with weights of its own; may have
            ``begin(step, steps)``, called before each step.
        config: how.
        run_dir: the run's folder; None writes no files.
        validation: data whose loss is watched, with the same times and noise at every look.
        sample: ``sample(denoiser, step, folder)``, called with the averaged weights every ``sample_every`` steps.
        resume: continue the run in ``run_dir``.
        quiet: no progress.
        extra: further entries of config.json.
        optimizer: ``parameters -> Optimizer`` instead of AdamW.
        device: where to train; by default a GPU if there is one.

    Raises:
        BadFile: a run is there already, or nothing is there to resume; a damaged checkpoint.
        Incompatible: resuming with another model, objective, configuration or data.
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
        self.denoiser, self.data, self.validation = denoiser, data, validation
        self.objective = Denoising() if objective is None else objective
        self.config = config = TrainConfig() if config is None else config
        self.folder = None if run_dir is None else Path(run_dir)
        self.sample, self.quiet, self.extra = sample, quiet, dict(extra or {})
        if not isinstance(denoiser, nn.Module):
            raise BadType(f"a denoiser to train is a module, got {type(denoiser).__name__}")
        self.parallel = Parallel(config.parallel, device, config.precision)
        self.device = self.parallel.device
        parts = self.parallel.world * config.accumulate
        if config.batch < parts:
            raise BadValue(f"a batch of {config.batch} can't be shared among {parts} processes and accumulated parts")
        mine = [m * self.parallel.world + self.parallel.rank for m in range(config.accumulate)]
        self.loader = Loader(data, Order(len(data), config.batch, config.seed), parts, mine)
        self.kinds = {**getattr(data, "kinds", {}), **getattr(denoiser, "kinds", {})}
        self._check_first_rows()
        self._claim(resume)
        self._build(optimizer)
        self.step, self.seconds, self.best = 0, 0.0, None
        self._validated: tuple[int, float] | None = None
        if resume:
            self._resume()
        self.log = Log(
            self.folder if self.parallel.main else None,
            self.step,
            tensorboard=config.tensorboard,
            wandb=config.wandb,
            config=self._describe(),
        )
        if self.folder is not None and not self.checkpoints.steps():
            self.save()  # the first weights: a resumed run doesn't depend on how they were made

    # Setting up

    def _check_first_rows(self) -> None:
        """Data that doesn't fit is refused before anything is written."""
        batch = as_batch(self.loader.fetch(torch.arange(min(2, len(self.data))), 0), self.kinds)
        shape = getattr(self.denoiser, "shape", None)
        if shape is not None and tuple(batch.x.shape[1:]) != tuple(shape):
            raise BadValue(f"the data has samples of shape {tuple(batch.x.shape[1:])}, the denoiser of {tuple(shape)}")

    def _claim(self, resume: bool) -> None:
        folder = self.folder
        if folder is None:
            if resume:
                raise BadValue("resume=True needs run_dir=, the run to continue")
            return
        self.checkpoints = Checkpoints(folder / "checkpoints", self.config.keep_last)
        taken = [n for n in (CONFIG, "checkpoints", "metrics.jsonl", RAW) if (folder / n).exists()]
        if taken and not resume:
            raise BadFile(
                f"{folder} holds a run already ({taken[0]}): continue it with resume=True, or name another folder"
            )
        if resume and not folder.is_dir():
            raise BadFile(f"there is no run to resume: {folder} does not exist")
        self.parallel.wait()
        if self.parallel.main:
            folder.mkdir(parents=True, exist_ok=True)
            clear_temporaries(folder)
        stored = folder / CONFIG
        if resume and stored.exists():
            self._check_settings(stored)
        elif self.parallel.main:
            write_json(stored, self._describe())
        self.parallel.wait()

    def _describe(self) -> dict[str, Any]:
        """config.json: what rebuilds the model and the run."""
        return {
            "format": FORMAT,
            **self.extra,
            "denoiser": describe(self.denoiser),
            "objective": describe(self.objective),
            "training": to_config(self.config),
            "data": self._data_facts(),
            "versions": versions(),
        }

    def _data_facts(self) -> dict[str, Any]:
        mark = getattr(self.data, "fingerprint", None)
        facts = {"name": getattr(self.data, "name", type(self.data).__name__), "length": len(self.data)}
        return {**facts, "fingerprint": mark() if callable(mark) else mark}

    def _check_settings(self, path: Path) -> None:
        from condiff.config import read_json

        stored, here = read_json(path), self._describe()
        for record in (stored, here):
            record["training"] = {k: v for k, v in record["training"].items() if k in fixed_fields()}
        for key in ("denoiser", "objective", "training", "data"):
            check_same(stored.get(key), here[key], f"{path.parent} was run with another {key} configuration")

    def _build(self, optimizer: Any) -> None:
        config, parallel = self.config, self.parallel
        self.module = _Step(self.denoiser, self.objective)
        self.module.to(self.device)
        parallel.same_start(self.module)
        blocks = blocks_of(self.denoiser) if config.checkpoint_activations or parallel.sharded else []
        self.recomputed = blocks if config.checkpoint_activations else []
        self.wrapped = parallel.wrap(self.module, blocks)
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if not named:
            raise BadValue("there is nothing to train: no parameter requires a gradient")
        self.parameters = list(named.values())
        self.names = {p: n for n, p in named.items()}
        self.optimizer = optimizer_of(self.parameters, config, optimizer)
        self.ema = EMA(self.denoiser, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    # Randomness: pure functions of (seed, step)

    def _source(self, part: int, parts: int, rows: int, *keys: int | str) -> Source:
        device = self.device if self.device.type == "cuda" else "cpu"
        generator = torch.Generator(device).manual_seed(derive_seed(self.config.seed, *keys))
        first, last = share(rows, part, parts)
        return Stream(generator) if parts == 1 else Shard(Stream(generator), first, last, rows)

    @contextmanager
    def _seeded(self, *keys: int | str) -> Iterator[None]:
        """Inside, what draws from torch's global generator (dropout) is a function of the keys; outside, untouched."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(self.config.seed, *keys))
            yield

    # The loop

    def fit(self) -> Status:
        """Train to the last step, or until a signal.

        Returns:
            The step reached; on SIGTERM and SIGINT the step in progress is finished and saved first.

        Raises:
            NonFinite: the loss or a gradient is not a number; the last checkpoint is untouched.
            BadFile: a checkpoint can't be written; earlier ones are untouched.
        """
        self.progress = Progress(self.config.steps, self.quiet or not self.parallel.main)
        try:
            with StopRequest() as stop, recomputing(self.recomputed), self._fast():
                return self._loop(stop)
        finally:
            self.progress.close()
            self.log.close()
            self.parallel.close()

    def _loop(self, stop: StopRequest) -> Status:
        config, cpu = self.config, self.device.type == "cpu"
        self.explain = Explain(self)
        batches = self.loader.iterate(self.step, config.steps, config.workers, pin=not cpu)
        self.clock = _Clock(self.seconds, self.step)
        self.denoiser.train()
        while self.step < config.steps:
            losses, norm = self._advance(batches)
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.step)
            self.explain.add(self.step, losses, norm)
            report = self.step % config.log_every == 0 or self.step == config.steps
            due = self._due(config.save_every)
            if cpu or report or due:
                stopping = self.parallel.any(stop.requested)
                self._report(report, due)
                if due or stopping:
                    self.save()
                if stopping and self.step < config.steps:
                    return Status(self.step, True, stop.signal)
            if self._due(config.sample_every) and self.sample is not None:
                self._call_sample()
        if self.folder is not None:
            self._finish()
        return Status(self.step, False)

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.config.steps)

    def _advance(self, batches: Iterator[Any]) -> tuple[list[Losses], Tensor]:
        """One optimizer step, from ``self.step`` to the next."""
        config, step = self.config, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        if hasattr(self.objective, "begin"):
            self.objective.begin(step, config.steps)
        out = []
        for index, part in enumerate(self.loader.mine):
            last = index == len(self.loader.mine) - 1
            with self._seeded("dropout", step, part), self.parallel.syncing(self.wrapped, last):
                out.append(self._part(next(batches), step, part))
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return out, norm

    def _part(self, raw: Any, step: int, part: int) -> Losses:
        """Forward and backward of one share of the batch; the gradient of the mean over the whole batch adds up."""
        parts, rows = self.loader.parts, self.config.batch
        batch = as_batch(raw, self.kinds).to(self.device, non_blocking=True)
        source = self._source(part, parts, rows, "step", step)
        with self._autocast():
            losses = self.wrapped(batch, source, True)
        fraction = len(batch) / rows
        # DDP and FSDP average over processes, hence the factor.
        self.scaler.scale(losses.loss * (fraction * self.parallel.world)).backward()
        return Losses(
            losses.loss.detach() * fraction,
            losses.per_sample.detach(),
            {k: v.detach() * fraction for k, v in losses.parts.items()},
            losses.t,
        )

    def _clip(self) -> Tensor:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _autocast(self) -> Any:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    @contextmanager
    def _fast(self) -> Iterator[None]:
        """Compiled network and TF32 inside; as it was outside."""
        config, network = self.config, getattr(self.denoiser, "network", self.denoiser)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        if config.compile:
            network.compile(**({"backend": config.compile} if isinstance(config.compile, str) else {}))
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
            if config.compile:
                network._compiled_call_impl = None

    # Looking

    def _report(self, report: bool, due: bool) -> None:
        """Write the lines of the steps since the last look, after checking that they are finite."""
        records = self.explain.flush()
        speed, seconds, left = self.clock.read(self.step, self.config)
        extra = {}
        if self.validation is not None and self._due(self.config.validate_every or self.config.save_every):
            extra["validation_loss"] = self.validate()
            self._validated = (self.step, extra["validation_loss"])
        for record in records:
            record |= {"images_per_s": round(speed, 2), "time": round(seconds, 4)}
        records[-1] |= extra
        for record in records:
            self.log.write(record)
        if report:
            self.log.scalars(records[-1])
            self.progress.show(self.step, records[-1]["loss"], speed, left)

    @torch.no_grad()
    def validate(self) -> float:
        """The loss on the validation data, with the averaged weights and always the same times and noise."""
        world, rank = self.parallel.world, self.parallel.rank
        size = min(len(self.validation), self.config.validation_size) // world * world
        if size == 0:
            raise BadValue(f"{len(self.validation)} rows of validation data are too few for {world} processes")
        order, fetch = torch.arange(size), fetcher(self.validation)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.denoiser.eval()
        with self.ema.swap() if self.ema is not None else nullcontext(), self._seeded("validation"):
            for index, rows in enumerate(order.split(max(world, self.config.batch // world * world))):
                first, last = share(len(rows), rank, world)
                batch = as_batch(fetch(rows[first:last], 0), self.kinds).to(self.device)
                source = self._source(rank, world, len(rows), "validation", index)
                with self._autocast():
                    total += self.module(batch, source, False).loss.double() * len(batch)
        self.denoiser.train()
        return float(self.parallel.total(total)) / size

    def _call_sample(self) -> None:
        if not (self.parallel.main or self.parallel.sharded):
            return
        self.denoiser.eval()
        folder = self.folder if self.parallel.main else None
        with self.ema.swap() if self.ema is not None else nullcontext(), self._seeded("sample", self.step):
            self.sample(self.denoiser, self.step, folder)
        self.denoiser.train()

    # Files

    def save(self) -> Path | None:
        """Write a checkpoint of the present step; returns its folder."""
        if self.folder is None:
            return None
        if self._validated is not None and self._validated[0] == self.step:
            value = self._validated[1]
            if self.best is None or value < self.best["validation_loss"]:
                self.best = {"step": self.step, "validation_loss": value}
        files, record = self._files()
        problem = None
        if self.parallel.main:
            try:
                if getattr(self, "log", None) is not None:
                    self.log.sync()
                self.checkpoints.save(self.step, files, record)
            except BadFile as error:
                problem = error
        if self.parallel.any(problem is not None):
            raise problem or BadFile("the first process could not write a checkpoint")
        return self.checkpoints.path(self.step)

    def _files(self) -> tuple[dict[str, tuple[dict[str, Tensor], dict[str, str]]], dict[str, Any]]:
        about = lambda weights, **more: describe_weights(self.denoiser, weights, step=self.step, **more)
        files = {"model": (wholes(self.denoiser.state_dict()), about("raw"))}
        for name in self.ema.averages if self.ema is not None else ():
            default = name == self.ema.default
            files[f"ema-{name}"] = (wholes(self.ema.tensors(name)), about(f"ema-{name}", default=default))
        if isinstance(self.objective, nn.Module):
            files["objective"] = (wholes(self.objective.state_dict()), {})
        tensors, record = pack_optimizer(self.optimizer, self.names)
        files["optimizer"] = (tensors, {})
        state = {
            "optimizer": record,
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "seconds": self.clock.seconds(self.step) if hasattr(self, "clock") else self.seconds,
            "rows_seen": self.step * self.config.batch,
            "training": to_config(self.config),
            "versions": versions(),
        }
        return files, state

    def _resume(self) -> None:
        found = self.checkpoints.newest(warn=lambda message: warnings.warn(message, stacklevel=4))
        if found is None:
            return
        path, state = found
        weights = read_file(path, "model")
        own = self.denoiser.state_dict()
        check_tensors(own, weights, str(path / RAW))
        for name, tensor in own.items():
            fill(tensor, weights[name])
        for name in self.ema.averages if self.ema is not None else ():
            average = read_file(path, f"ema-{name}")
            for own_tensor, key in zip(self.ema.values[name], self.ema.names, strict=True):
                fill(own_tensor, average[key])
        if isinstance(self.objective, nn.Module):
            stored = read_file(path, "objective")
            for name, tensor in self.objective.state_dict().items():
                fill(tensor, stored[name])
        unpack_optimizer(self.optimizer, self.names, read_file(path, "optimizer"), state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]

    def _finish(self) -> None:
        if self.checkpoints.steps()[-1:] != [self.step]:
            self.save()
        weights = wholes(self.denoiser.state_dict())
        names = self.ema.averages if self.ema is not None else ()
        averages = {name: wholes(self.ema.tensors(name)) for name in names}
        if self.parallel.main:
            save_model(
                self.folder, self.denoiser, tensors=weights, ema=averages, extra=self._describe(), step=self.step
            )
        self.parallel.wait()

    def averaged(self, name: str | None = None) -> nn.Module:
        """A copy of the denoiser with averaged weights, in evaluation mode; without averages, with the plain ones."""
        from copy import deepcopy

        if self.parallel.sharded:
            raise BadValue("the weights are sharded over processes: load the run's folder with load_model")
        copy = deepcopy(self.denoiser)
        if self.ema is not None:
            copy.load_state_dict(self.ema.tensors(name or self.ema.default))
        return copy.eval()


class _Clock:
    """Speed since the last look, and time since the run's beginning."""

    def __init__(self, seconds: float, step: int) -> None:
        self.offset, self.start, self.last = seconds, time.perf_counter(), (time.perf_counter(), step)
        self.first = step

    def seconds(self, step: int) -> float:
        return self.offset + time.perf_counter() - self.start

    def read(self, step: int, config: TrainConfig) -> tuple[float, float, float]:
        """``(samples per second, seconds, seconds left)``."""
        now, (then, before) = time.perf_counter(), self.last
        self.last = (now, step)
        speed = (step - before) * config.batch / max(now - then, 1e-9)
        left = (config.steps - step) * (now - self.start) / max(1, step - self.first)
        return speed, self.seconds(step), left
