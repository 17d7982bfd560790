"""Looking on while a model is sampled: every step is told, and a cancelled request ends there."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.errors import Degenerate
from condiff.process.prediction import Prediction
from condiff.sampling import Hook
from condiff.sampling.loop import Run, Step
from condiff.web.views import Viewer, finite
from condiff.web.worker import Job

QUICK = 0.05  # seconds that a view may always take
SHARE = 0.25  # of the time that slower ones may take together


class Watching(Hook):
    """Tells ``{"type": "step", "index", "steps", "first", "view"}`` after every step, and stops where the job is.

    The view is of what the model believes the samples to be, x0, or of tokens as they stand. It is left out of steps
    where there is no x0, and of some steps where views are slow: those may take a quarter of the time.
    """

    def __init__(self, job: Job, viewer: Viewer, num: int, codec: Codec | None = None) -> None:
        self.job, self.viewer, self.num, self.codec = job, viewer, num, codec
        self.done = 0  # samples of earlier batches
        self.nfe = 0
        self._rows = 0
        self._began, self._spent, self._last = time.perf_counter(), 0.0, 0.0

    def start(self, run: Run) -> None:
        self.done = (self.done + self._rows) % self.num  # samples that grow in chunks begin again with the first
        self._rows = 0

    def after(self, step: Step, run: Run) -> Tensor:
        self.job.check()
        self._rows, self.nfe = len(step.x_s), step.nfe
        self.job.tell(
            {
                "type": "step",
                "index": step.index + 1,
                "steps": run.steps,
                "first": self.done,
                "nfe": step.nfe,
                "view": self._view(step),
            }
        )
        return step.x_s

    def _view(self, step: Step) -> Any:
        now = time.perf_counter()
        if self._last > QUICK and self._spent > SHARE * (now - self._began):
            return None
        x0 = believed(step)
        if x0 is None:
            return None
        with torch.no_grad():
            x = (x0 if self.codec is None else self.codec.decode(x0)).detach().cpu()
        view = self.viewer(x) if finite(x) else None
        self._last = time.perf_counter() - now
        self._spent += self._last
        return view


def believed(step: Step) -> Tensor | None:
    """What the samples are thought to be at a step; None where that can't be said."""
    if not isinstance(step.prediction, Prediction):  # of tokens, whose state is half of what they will be
        return step.x_s
    try:
        return step.prediction.x0
    except Degenerate:
        return None
