"""Solver: the update rule from a level t to the next level s, over one shared loop.

A rule with one evaluation per step writes two methods: ``plan``, its coefficients for the whole grid (numbers,
worked out once in float64), and ``advance``, the update ``(x, prediction, coefficients, state) -> (mean, std)``.
Noise is added by the loop, so that hooks see the mean and every draw can be given. A rule that evaluates
inside a step overrides ``step``.

The same rule serves one time for all and a time per row or frame: coefficients are then tensors over the
leading dimensions, and :mod:`condiff.process.algebra` matches them to the state. Where a time repeats (t = s, for
all or for some entries) the state comes back bit for bit, and evaluations from before such a pause or from before a
turn of direction are not used any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from condiff.fields import checked
from condiff.process.algebra import Weight, combine, match, readable
from condiff.process.level import Level
from condiff.process.prediction import Prediction


class Entry(NamedTuple):
    """One past evaluation: the state, what was predicted there (in the solver's own quantity), and its level."""

    x: Tensor
    value: Tensor
    level: Level


@dataclass
class State:
    """What a solver carries from step to step: past evaluations, newest first, and free slots.

    A small mutable record: copyable, and correctors may rewrite entries.
    """

    history: list[Entry] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def push(self, entry: Entry, keep: int) -> None:
        """Remember an evaluation, keeping the newest ``keep``."""
        self.history.insert(0, entry)
        del self.history[keep:]

    def copy(self) -> State:
        """A record of its own: steps taken with either don't change the other. Tensors, which no rule writes to, are
        shared."""
        extra = {k: v.copy() if isinstance(v, State | dict | list) else v for k, v in self.extra.items()}
        return State(list(self.history), extra)

    def rows(self, index: Any) -> State:
        """The state of a subset (or a shift) of the batch, of all variables of a joint one."""
        history = [Entry(e.x[index], e.value[index], e.level.rows(index)) for e in self.history]
        return State(history, {k: _rows(v, index) for k, v in self.extra.items()})


def _rows(value: Any, index: Any) -> Any:
    if isinstance(value, State):
        return value.rows(index)
    return value[index] if isinstance(value, Tensor) else value


def repeats(t: Level, s: Level) -> bool | Tensor:
    """Where the time repeats (t = s): for all, for none, or a mask over the leading dimensions."""
    if not isinstance(t.t, Tensor):
        return t.t == s.t
    same = t.t == s.t
    return same if not readable(same) or bool(same.any()) else False


def hold(same: bool | Tensor, x: Tensor, x_s: Tensor) -> Tensor:
    """``x_s``, but ``x`` itself, bit for bit, where the time repeats."""
    if isinstance(same, Tensor):
        return torch.where(match(same, x).bool(), x, x_s)
    return x if same else x_s


def velocity(prediction: Prediction, step: Weight) -> Tensor:
    """The velocity; zero where the step is zero, so that it need not exist there (a held clean frame)."""
    if not isinstance(step, Tensor):
        return prediction.velocity
    level = prediction.level
    row = [torch.where(step == 0.0, 0.0, d) for d in (level.d_data, level.d_noise, level.d_source)]
    return prediction.linear(*row)


class Solver(ABC):
    """Base of the update rules. Subclasses are frozen dataclasses without weights.

    Attributes:
        tokens: whether the rule is for categorical processes.
        joint: whether it is for joint processes only.
    """

    tokens: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

    @property
    def relative_noise(self) -> float | None:
        """The rate of fresh noise relative to the reverse SDE's, as steps become small: 1 for the reverse SDE and
        ancestral sampling, 0 for an ODE, None where it is no fixed multiple."""
        return None if self.stochastic else 0.0

    @property
    def remembers(self) -> bool:
        """Whether a step goes on from evaluations of earlier ones, at the states that those left."""
        return False

    def check(self, denoiser: Any, x: Any) -> None:  # noqa: B027 - most rules fit all
        """Before the first step: refuse a denoiser or a state that the rule isn't made for."""

    @abstractmethod
    def plan(self, levels: Sequence[Level]) -> list[Any]:
        """Coefficients of each of the ``len(levels) - 1`` steps."""

    def start(self) -> State:
        """A fresh state."""
        return State()

    def advance(self, x: Tensor, prediction: Prediction, c: Any, state: State) -> tuple[Tensor, Weight]:
        """``x_s = mean + std z``: the mean and the standard deviation (the number 0.0 for none)."""
        raise NotImplementedError(f"{type(self).__name__} overrides step()")

    def step(self, x: Tensor, c: Any, state: State, run: Any) -> tuple[Tensor, Prediction | None, Tensor | None]:
        """One step: ``(x_s, the step's first prediction, the noise used)``."""
        prediction = run.denoise(x, run.t)
        mean, std = self.advance(x, prediction, c, state)
        return self.finish(x, mean, std, prediction, run)

    def finish(
        self, x: Tensor, mean: Tensor, std: Weight, prediction: Prediction, run: Any
    ) -> tuple[Tensor, Prediction, Tensor | None]:
        """The end of a step: hold what stays, let hooks see the mean, add the noise."""
        same = repeats(run.t, run.s)
        if same is not False:
            mean = hold(same, x, mean)
            if isinstance(same, Tensor) and isinstance(std, Tensor):
                std = torch.where(match(same, std).bool(), 0.0, std)
            else:
                std = 0.0
        mean = run.on_mean(mean, std, prediction)
        if not isinstance(std, Tensor) and std == 0.0:
            return mean, prediction, None
        noise = run.on_drawn(run.draw(x), mean, std, prediction)
        return combine((1.0, mean), (std, noise)), prediction, noise
