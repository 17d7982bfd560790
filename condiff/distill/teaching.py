"""Objectives with a teacher: what a frozen model says of a state takes the place of the truth about it.

The teacher isn't part of an objective's configuration, since it has weights of its own: ``objective.of(teacher)`` is
the objective that compares with it.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from condiff.conditions import GUIDANCE, Conditions
from condiff.denoiser import Denoises, device_of
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance import Free
from condiff.process import Level, Prediction, algebra
from condiff.process.algebra import Weight, combine
from condiff.training import Denoising, DiscreteTimes, Losses, Times, TruncatedSNR, Weighting
from condiff.typing import Float, Tensor


def frozen(denoiser: Any) -> Any:
    """A copy that doesn't learn: in evaluation mode, without gradients.

    Raises:
        BadType: something that isn't a denoiser.
    """
    if isinstance(denoiser, type) or not hasattr(denoiser, "process"):
        raise BadType(f"a teacher is a denoiser (process, shape, a call), got {denoiser!r}")
    out = copy.deepcopy(denoiser)
    return out.eval().requires_grad_(False) if isinstance(out, nn.Module) else out


@dataclass(frozen=True, kw_only=True)
class Taught(Denoising):
    """Base: :class:`~condiff.training.Denoising` whose aim is what a teacher says. Subclasses give :meth:`lesson`.

    Args:
        weighting: of the squared error of x0; the larger of those of x0 and of noise by default (Salimans & Ho 2022).
    """

    weighting: Weighting = field(default_factory=TruncatedSNR)
    teacher: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.antithetic or self.variance is not None or self.coupling is not None:
            raise Incompatible(
                f"{type(self).__name__} is told what to say by its teacher: it takes no antithetic noise, no variance "
                "and no coupling"
            )

    def of(self, teacher: Denoises) -> Self:
        """This objective with a teacher, of which a frozen copy is kept."""
        out = copy.copy(self)
        object.__setattr__(out, "teacher", frozen(teacher))
        return out

    def check_student(self, denoiser: Any) -> None:
        """Refuse a denoiser that can't learn it, before any training."""

    def aim(self, truth: Prediction, cond: Conditions) -> Prediction:
        """
        Raises:
            BadValue: no teacher yet.
            Incompatible: a teacher on another process.
        """
        teacher, process = self.teacher, truth.level.process
        if teacher is None:
            name = type(self).__name__
            raise BadValue(f"{name} needs a teacher: {name}(...).of(teacher), or a Stage after another one")
        if teacher.process != process:
            raise Incompatible(f"the student lives on {process}, its teacher on {teacher.process}")
        if isinstance(teacher, nn.Module) and device_of(teacher, truth.x_t) != truth.x_t.device:
            teacher.to(truth.x_t.device)
        with torch.no_grad():
            return self.lesson(truth, cond)

    @abstractmethod
    def lesson(self, truth: Prediction, cond: Conditions) -> Prediction:
        """What the student is to say of ``truth.x_t``; without gradients."""


@dataclass(frozen=True, kw_only=True)
class GuidedDistillation(Taught):
    """One network that is told the scale, in place of two evaluations (Meng 2023, arXiv 2210.03142, section 3.1).

    With a scale drawn for each row (``transform=RandomScale(low, high)``), which the student is told, the aim is
    ``absent + scale (conditional - absent)`` of the teacher, two evaluations in one batched call. The combination is
    linear, so that it is the same in any quantity.

    Args:
        name: of the condition that holds the scale.
        drop: names that the reference isn't told; all droppable ones when None.
    """

    name: str = GUIDANCE
    drop: tuple[str, ...] | None = None

    def lesson(self, truth: Prediction, cond: Conditions) -> Prediction:
        """
        Raises:
            BadValue: rows without a scale; no other condition.
        """
        if self.name not in cond:
            raise BadValue(
                f"the student is taught at guidance scales, and its batch has no {self.name!r}: give "
                "transform=RandomScale(low=..., high=...)"
            )
        told = Conditions({name: entry for name, entry in cond.items() if name != self.name})
        return Free(self.teacher, scale=cond[self.name].value, drop=self.drop)(truth.x_t, truth.level, told)


@dataclass(frozen=True, kw_only=True)
class Halving(Taught):
    """One DDIM step in place of two of the teacher's (Salimans & Ho 2022, arXiv 2202.00512; Meng 2023, section 3.2).

    A student of N ``steps`` is taught at ``u = i / N``, i = 1 ... N. The teacher steps from u to ``m = u - 1 / 2N`` and
    on to ``s = u - 1 / N``, where it says x1 and then x2. The aim is the x0 with which a single step leads from u to s
    to the same state. It lies between the two,

        ``x1 + g (x2 - x1)``,    ``g = expm1((l_m - l_s) / 2) / expm1((l_u - l_s) / 2)``

    with l the log-SNR: a convex combination, in which nothing cancels (the usual quotient of differences of states
    does, by four digits in float32 at a thousand steps). At the last step, where s is the data, it is x2.

    Args:
        steps: N of the student.
        double: for the stochastic sampler, :class:`~condiff.sampling.Overshoot`, whose steps are twice as long:
            ``s = u - 2 / N`` but for the last one.
        direct: the teacher was taught ``double`` steps as well: from ``1 / N`` it leads to the data at once, and what
            it says there is the aim.

    Raises:
        BadValue: fewer than one step; ``direct`` without ``double``; a time that isn't one of the student's.
        Incompatible: a student that predicts noise, in two steps or fewer: at pure noise that says nothing of x0.
    """

    steps: int
    double: bool = False
    direct: bool = False
    target: str | tuple[str, ...] | None = "x0"
    times: Times = field(init=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadValue(f"a student takes at least 1 step, got {self.steps}")
        if self.direct and not self.double:
            raise BadValue("direct=True is about a teacher of double steps: its student takes double=True")
        object.__setattr__(self, "times", DiscreteTimes(grid=self.steps))
        super().__post_init__()

    def check_student(self, denoiser: Any) -> None:
        """
        Raises:
            Incompatible: one that predicts noise, in two steps or fewer.
        """
        if self.steps <= 2 and tuple(getattr(denoiser, "targets", ())) == ("noise",):
            raise Incompatible(
                f"a student that predicts noise can't be distilled to {self.steps} steps: at pure noise x0 doesn't "
                "follow from it. Predict v or x0, or stop at 4 steps"
            )

    def __call__(self, denoiser: Any, batch: Any, rng: Any = None, training: bool = True) -> Losses:
        self.check_student(denoiser)
        return super().__call__(denoiser, batch, rng, training)

    def lesson(self, truth: Prediction, cond: Conditions) -> Prediction:
        u, process = truth.level, truth.level.process
        end = self.step_end(u.t)
        m, s = process.at(0.5 * (u.t + end)), process.at(end)
        x1, x2 = two_steps(self.teacher, truth.x_t, u, m, cond)
        g = fraction(u, m, s)
        if self.direct:
            g = algebra.where(self.index(u.t) == 1.0, 0.0, g)
        return Prediction(truth.x_t, u, {"x0": combine((1.0 - g, x1), (g, x2))}, truth.source)

    def step_end(self, t: Weight) -> Weight:
        """Where a student's step from t ends."""
        index = self.index(t)
        if self.double:
            return torch.where(index >= 2.0, index - 2.0, index - 1.0) / self.steps
        return (index - 1.0) / self.steps

    def index(self, t: Weight) -> Tensor:
        """i of the student's time ``i / N``, float64."""
        place = torch.as_tensor(t, dtype=torch.float64) * self.steps
        index = place.round()
        if not algebra.holds((place - index).abs() < 1e-6):
            raise BadValue(f"a student of {self.steps} steps is taught at their times, got t = {t}")
        return index


def two_steps(
    teacher: Any, x: Float[Tensor, "batch *shape"], u: Level, m: Level, cond: Conditions
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """What a denoiser says of x0 at u, and at m after a DDIM step there."""
    first = teacher(x, u, cond)
    halfway = first.linear(x0=m.data, noise=m.noise)
    return first.x0, teacher(halfway, m, cond).x0


def fraction(u: Level, m: Level, s: Level) -> Weight:
    """``g`` of :class:`Halving`, for s < m < u: in (0, 1], 1 where s is clean.

    Raises:
        Incompatible: a process with an endpoint.
    """
    if u.process.has_source:
        raise Incompatible(f"steps are halved on a path to noise; {u.process} leads to an endpoint")
    half = lambda a, b: algebra.expm1(0.5 * (a.log_snr - b.log_snr))
    return algebra.divide(half(m, s), half(u, s))
