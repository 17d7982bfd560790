"""Kind: what a kind of data needs to be learned, drawn, judged and written by a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from condiff.data import Data, Recalled, remember
from condiff.errors import BadFile, BadValue, Incompatible
from condiff.files import replacing
from condiff.methods import given
from condiff.methods.drawn import Drawing, Part, Plan
from condiff.methods.given import Given
from condiff.methods.judge import judge_of
from condiff.methods.recipe import Recipe, default_network, default_training
from condiff.metrics import evaluate
from condiff.process.categorical import TokenProcess
from condiff.process.joint import Joint
from condiff.sampling import infill, trajectory
from condiff.sampling.loop import initial_state
from condiff.training.batch import each

FEWEST = 6  # rows that distances between distributions need
MOST_TRAINED = 20_000  # training rows that samples are compared with


class OfRequest(Protocol):
    """The words that named a run's data: ``source``, and its ``options``."""

    @property
    def source(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


class OfRun(Protocol):
    """What a kind sees of a run."""

    @property
    def data(self) -> Data: ...
    @property
    def heldout(self) -> Data: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def request(self) -> OfRequest: ...


class Kind(ABC):
    """A kind of data. What isn't overridden suits values of any shape: ``(D,)`` vectors and the rest.

    Attributes:
        holds: what its samples are, in a sentence that refuses a method.
        default_method: what ``condiff train`` uses unless told otherwise.
        sources: the words of ``condiff train`` whose runs keep something to be opened by (:meth:`kept_options`).
        fewest: how many samples the figures of :meth:`score` need.
        endings: of the files that samples can be written to, beside a folder; ``ending`` is the default one.
    """

    holds: ClassVar[str] = "values"
    default_method: ClassVar[str] = "flow-matching"
    sources: ClassVar[tuple[str, ...]] = ()
    fewest: ClassVar[int] = FEWEST
    endings: ClassVar[tuple[str, ...]] = (".png", ".npz", ".npy")
    ending: ClassVar[str] = ".npz"

    @abstractmethod
    def matches(self, data: Any) -> bool:
        """Whether data are of this kind, by ``data.shape``, ``data.vocab`` or what else they are. Kinds are asked in
        the order of ``KINDS``, so that one may be a special case of a later one."""

    # Learning

    def numbers(self, data: Data) -> int:
        """How many numbers a sample has."""
        return math.prod(data.shape)

    def std(self, x: Any) -> float:
        """Standard deviation of the values of some samples."""
        return float(x.double().std())

    def classes(self, data: Data) -> Mapping[str, int]:
        """Of samples that hold classes: name -> how many there are."""
        return {}

    def network(self, facts: Any) -> Any:
        """The default network for :class:`condiff.methods.Facts` of such data."""
        return default_network(facts.shape, facts.embeddings)

    def training(self, facts: Any) -> Any:
        """The default training."""
        return default_training(facts.shape, facts.count)

    def fits(self, process: Any) -> bool:
        """Whether a process can make such samples."""
        return not isinstance(process, TokenProcess | Joint)

    def check_process(self, data: Data, process: Any, method: str) -> None:
        """
        Raises:
            Incompatible: a process of other samples, tokens for a process of values for instance.
        """
        if not self.fits(process):
            raise Incompatible(
                f"{data.name} holds {self.holds}, which {method} can't learn: use --method {self.default_method}"
            )

    def options_like(self, options: Mapping[str, Any], data: Data) -> dict[str, Any]:
        """The options of a source with which other data are read as some data were."""
        return dict(options)

    # The run's folder

    def kept(self, data: Data) -> dict[str, str]:
        """Files of a run's folder, by name, that it can't be opened without."""
        return {}

    def kept_options(self, options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The options of a run's data when it is opened again, with what was :meth:`kept`."""
        return dict(options)

    def remembered(self, data: Data) -> dict[str, Any]:
        """What a run is used with where its data isn't."""
        return remember(data)

    def recalled(self, facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
        """The data of a run as far as it is :meth:`remembered`, without rows."""
        return Recalled(facts)

    # Drawing

    def rows_at_once(self, data: Data, batch: int) -> int:
        """The rows of a network call."""
        return batch

    def draw(self, plan: Plan, rows: range) -> Part:
        """Some samples of a plan. To override where they aren't the end of one trajectory, such as frames in blocks.

        Sample i must depend on ``plan.seed + i`` and its own conditions only, whatever the other rows are.
        """
        rng, denoiser, sampler = plan.source(rows), plan.denoiser, plan.sampler
        cond, held = plan.conditions(rows, rng), None
        if plan.known is None:
            x = initial_state(
                sampler.prior,
                denoiser.process,
                plan.times,
                len(rows),
                denoiser.shape,
                rng=rng,
                cond=cond,
                device=plan.device,
            )
        else:
            tokens, held = (part[rows.start : rows.stop].to(plan.device) for part in plan.known)
            x = infill(denoiser.process, tokens, held, rng)
        nfe, calls = 0, None
        how = {"solver": sampler.solver, "grid": plan.times, "hooks": sampler.hooks}
        for step in trajectory(denoiser, x, **how, cond=cond, rng=rng, held=held):
            x, nfe, calls = step.x_s, step.nfe, step.state.extra.get("nfe")
            if plan.progress is not None:
                plan.progress(step.index + 1, plan.steps)
        return Part(self.decoded(plan, x), nfe, calls.cpu() if isinstance(calls, Tensor) else None)

    def decoded(self, plan: Plan, x: Any) -> Any:
        """Last states as samples of the data, on the CPU."""
        return each(lambda v: v.cpu(), x if plan.codec is None else plan.codec.decode(x))

    # Judging

    def judged(self, heldout: Data) -> int:
        """How many samples a run is judged by, unless told otherwise."""
        return len(heldout)

    def score(self, made: Drawing, model: Any, heldout: Data, run: OfRun) -> dict[str, Any]:
        """The figures of metrics.json: here distances, and accuracy by a judge where there are classes; the count
        alone for too few rows to compare."""
        real = heldout.batch(range(len(heldout)))["x"]
        train = run.data.batch(range(min(len(run.data), MOST_TRAINED)))["x"]
        if min(made.num, len(real), len(train)) < FEWEST:
            return {"samples": made.num}
        judge = judge_of(run.request.source, run.data)
        return evaluate(made.x, train, real, labels=made.labels if judge else None, classifier=judge)

    # Looking

    def shown(self, data: Data) -> int:
        """How many samples are drawn to be looked at, during training and at its end; 0 for none during training, and
        at the end those that were judged."""
        return 0

    def show(self, made: Drawing, stem: Path, run: OfRun) -> Path | None:
        """Write samples to be looked at, to ``stem`` with an ending that browsers and the report page know (.png, .gif,
        .txt); returns the file, None where there is nothing to see."""
        return None

    # ``condiff sample``

    def check_output(self, out: Path, overwrite: bool) -> None:
        """
        Raises:
            BadValue: an ending that such samples aren't written with.
            BadFile: the output is there already.
        """
        ending = out.suffix.lower()
        if ending not in (*self.endings, ""):
            raise BadValue(f"--out must end in {', '.join(self.endings)}, or be a folder, got {out.name!r}")
        self._check_drawable(out, ending)
        if out.exists() and not overwrite:
            raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")

    def _check_drawable(self, out: Path, ending: str) -> None:
        if ending in ("", ".png"):
            raise BadValue(f"samples that aren't images can't be drawn: use --out {out.with_suffix(self.ending)}")

    def check_count(self, out: Path, num: int) -> None:
        """Raises :class:`BadValue` for fewer than one sample, or more than one file holds."""
        if num < 1:
            raise BadValue(f"--num must be at least 1, got {num}")

    def check_frames(self, frames: int, run: OfRun) -> None:
        """
        Raises:
            BadValue: samples that have no frames, or fewer frames than are possible.
        """
        raise BadValue("--frames is the length of a clip, and this run doesn't make clips")

    def default_num(self, labels: Sequence[str], data: Data) -> int:
        """How many samples to draw when neither a number nor rows of conditions say it."""
        return 8 * (len(labels) or len(data.classes) or 8)

    def read_conditions(self, words: Sequence[str], run: OfRun) -> Given:
        """What ``--condition`` gives; see :func:`condiff.methods.given.read`."""
        return given.read(words, run.data, run.request.options)

    def read_known(self, words: Sequence[str], run: OfRun) -> Given:
        """What ``--known`` gives, of samples that hold several things.

        Raises:
            BadValue: samples of one thing.
        """
        if words:
            raise BadValue("samples of this run are one thing, of which --known can't give a part: see --condition")
        return Given({})

    def write(self, made: Drawing, out: Path, run: OfRun, told: Given) -> None:
        """Write samples: here arrays, with what they were made from."""
        out.parent.mkdir(parents=True, exist_ok=True)
        x = self.stored(made, run).numpy()
        with replacing(out) as temporary, open(temporary, "wb") as file:
            if out.suffix.lower() == ".npy":
                np.save(file, x)
            else:
                arrays: dict[str, Any] = {"x": x} | {name: value.numpy() for name, value in made.cond.items()}
                np.savez(file, **arrays)

    def stored(self, made: Drawing, run: OfRun) -> Any:
        """The samples as they are written: those of arrays in the units that the data is stored in."""
        return run.data.restore(made.x) if run.request.source in ("arrays", "unpaired") else made.x

    def said(self, made: Drawing, run: OfRun) -> dict[str, Any]:
        """What else is told of samples, beside where they are and how they were made."""
        return {}
