"""What a server serves: a model with the form of its settings, whatever it was loaded from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condiff.errors import BadValue, CondiffError
from condiff.methods.drawn import Drawing
from condiff.methods.names import SOLVERS
from condiff.sampling import Solver
from condiff.sampling.checks import check_solver
from condiff.web.limits import Limits
from condiff.web.settings import Settings
from condiff.web.views import Viewer, names_of
from condiff.web.worker import Job

File = Callable[[str], bytes]  # of metadata, JSON in ASCII: the content of a file


@dataclass(frozen=True)
class Made:
    """What a request gave.

    Args:
        drawing: the samples.
        settings: as they were used, the model's own choices filled in.
        facts: about the model and how it went, JSON-ready.
    """

    drawing: Drawing
    settings: Settings
    facts: Mapping[str, Any]

    @property
    def x(self) -> Tensor:
        return self.drawing.x


class Source(ABC):
    """Base: a model that can be asked.

    Attributes:
        viewer: how its samples are shown.
        shape: of a sample.
    """

    viewer: Viewer
    shape: Sequence[int]

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a page needs for its form, JSON-ready."""

    @abstractmethod
    def make(self, settings: Settings, job: Job) -> Made:
        """Sample; steps are told to the job.

        Raises:
            CondiffError: settings that don't fit the model, in words for whoever set them.
        """

    @abstractmethod
    def files(self, made: Made) -> Mapping[str, File]:
        """Ending -> what writes such a file of the samples."""

    def shown_beside(self, made: Made) -> dict[str, Any]:
        """Pictures that were given, and the true ones, as views; for each sample its name."""
        drawing, beside = made.drawing, {}
        for name, value in drawing.cond.items():
            if value.shape == drawing.x.shape:
                beside[name] = self.viewer(value)
        if drawing.truth is not None and beside and drawing.truth.shape == drawing.x.shape:
            beside["true"] = self.viewer(drawing.truth)
        return {"names": names_of(drawing.names, len(drawing.x)), "beside": beside}


def solvers_for(process: Any) -> list[str]:
    """Short names of the update rules that fit a process."""
    return [name for name, make in SOLVERS.items() if _fits(make(), process)]


def _fits(solver: Solver, process: Any) -> bool:
    try:
        check_solver(solver, process)
    except CondiffError:
        return False
    return not solver.tokens or hasattr(process, "vocab")


def check_size(num: int, shape: Sequence[int], limits: Limits) -> None:
    """
    Raises:
        BadValue: samples that are too much together.
    """
    most = limits.numbers // math.prod(shape)
    if num > most:
        what = " x ".join(map(str, shape))
        raise BadValue(f"at most {most} samples of {what} numbers may be asked for at once here, got {num}")
