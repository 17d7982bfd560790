"""What a run says while it runs: ``metrics.jsonl``, TensorBoard, Weights & Biases, and a progress line."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from condiff.errors import MissingExtra
from condiff.files import replacing
from condiff.training.config import TrainConfig


class Log:
    """Writes each step's metrics wherever they go. Without a folder they are kept in memory only.

    Args:
        folder: the run's folder.
        start: the step that the run continues from; later lines of an earlier attempt are dropped.
        tensorboard, wandb: see :class:`TrainConfig`.
        config: what Weights & Biases is told.
    """

    def __init__(
        self, folder: Path | None, start: int, *, tensorboard: bool, wandb: bool, config: dict[str, Any]
    ) -> None:
        self.history: list[dict[str, Any]] = []
        self._file = self._board = self._wandb = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        if path.exists():
            self.history = truncate(path, start)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the run
        if tensorboard:
            self._board = _board(folder / "tensorboard", start)
        if wandb:
            self._wandb = wandb_module().init(
                dir=str(folder), name=folder.name, config=config, resume="allow", id=folder.name
            )

    def write(self, record: dict[str, Any]) -> None:
        """One step's line."""
        self.history.append(record)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")

    def scalars(self, record: dict[str, Any]) -> None:
        """The same for the boards, which are told less often."""
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=record["step"])

    def sync(self) -> None:
        """Everything so far is on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def wandb_module() -> Any:
    """Weights & Biases, or the error that says how to install it."""
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb=True needs the package 'wandb': pip install wandb") from error
    return wandb


def truncate(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after ``step``, and a torn last one; returns what stays."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the process died while it wrote this line
        if record["step"] <= step:
            records.append(record)
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return records


class Progress:
    """Step, loss, speed and time left: a live line in a terminal, else a plain one now and then."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self.steps, self.quiet = steps, quiet
        self._live: Any = None
        if not quiet and sys.stderr.isatty():
            self._live = _rich_progress(steps)

    def say(self, message: str) -> None:
        """A message of its own."""
        if self._live is not None:
            self._live[0].console.print(message, markup=False, highlight=False)
        elif not self.quiet:
            print(message, file=sys.stderr, flush=True)

    def show(self, step: int, loss: float, speed: float, seconds_left: float, report: bool) -> None:
        """Where the run is; a plain line only at reports."""
        if self._live is not None:
            bar, task = self._live
            bar.update(task, completed=step, loss=f"{loss:.4f}", speed=f"{speed:,.0f}/s")
        elif report and not self.quiet:
            left = f"{int(seconds_left) // 3600}:{int(seconds_left) // 60 % 60:02}:{int(seconds_left) % 60:02}"
            print(
                f"step {step}/{self.steps}  loss {loss:.4f}  {speed:,.0f} samples/s  {left} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._live is not None:
            self._live[0].stop()
            self._live = None


def _rich_progress(steps: int) -> Any:
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    from rich.console import Console

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("training", total=steps, loss="", speed="")
    bar.start()
    return bar, task


class Clock:
    """Speed since the last look, and time since the run's beginning, earlier sittings included."""

    def __init__(self, config: TrainConfig, step: int, seconds: float) -> None:
        self.config, self.first, self.offset = config, step, seconds
        self.start = time.perf_counter()
        self.last = (self.start, step)

    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.offset + time.perf_counter() - self.start

    def read(self, step: int) -> tuple[float, float]:
        """``(samples per second, seconds left)``."""
        now, (then, before) = time.perf_counter(), self.last
        self.last = (now, step)
        speed = (step - before) * self.config.batch / max(now - then, 1e-9)
        return speed, (self.config.steps - step) * (now - self.start) / max(1, step - self.first)
