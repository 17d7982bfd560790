"""Schedules of guidance over a trajectory, and displacements that are measured by the state itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.fields import checked
from condiff.process.algebra import Weight, rms
from condiff.process.level import Level
from condiff.sampling.loop import Hook, Run


def sine(place: float, run: Run) -> float:
    """``sin(pi place)``, refused for times that differ between the rows.

    Raises:
        Incompatible: a time per row or per frame: there is no common place on the grid.
    """
    if isinstance(run.t.t, Tensor) and run.t.t.ndim:
        raise Incompatible("a schedule over the steps needs one time for all rows, and this grid has a time per row")
    return math.sin(math.pi * place)


@dataclass(frozen=True, eq=False)
@checked
class SineBoost:
    """Extra variance for :class:`MeanShift`: ``strength sin(pi k / N) V`` (Ma 2024, EluCD's schedule).

    k counts the steps that are left, N - 1 at the first and 0 at the last of N, so that guidance is strongest half-way.
    V is the largest variance of a step so far on this trajectory: a number, or with learned variances one a sample,
    the largest over its elements.

    Raises:
        BadValue: a strength below 0.
        Incompatible: times per row.
    """

    strength: float = 0.3
    _peak: dict[str, Weight] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < math.inf:
            raise BadValue(f"SineBoost needs strength >= 0, got {self.strength}")

    def __call__(self, variance: Weight, run: Run) -> Weight:
        wave = sine((run.steps - 1 - run.index) / run.steps, run)
        if run.index == 0:
            self._peak["variance"] = 0.0
        peak = self._peak["variance"] = _larger(self._peak["variance"], variance)
        return 0.0 if wave == 0.0 else self.strength * wave * peak


def _larger(peak: Weight, variance: Weight) -> Weight:
    if isinstance(variance, Tensor):
        most = variance.flatten(1).amax(1).reshape(-1, *(1,) * (variance.ndim - 1))
        return torch.maximum(most, torch.as_tensor(peak, dtype=most.dtype, device=most.device))
    return peak.clamp_min(variance) if isinstance(peak, Tensor) else max(peak, variance)


@dataclass(frozen=True)
@checked
class SineShare:
    """A share for :class:`Nudge` that falls with the steps and swells half-way (Ma 2024, the EDM sampler):

    ``max(strength (N + 1 - i) / (N + 1), floor) + strength swell sin(pi i / N)`` at step i of N.

    Raises:
        BadValue: a negative number.
        Incompatible: times per row.
    """

    strength: float = 0.004
    swell: float = 0.3
    floor: float = 1e-5

    def __post_init__(self) -> None:
        if not all(0.0 <= v < math.inf for v in (self.strength, self.swell, self.floor)):
            raise BadValue(f"SineShare needs numbers >= 0, got {self}")

    def __call__(self, run: Run) -> float:
        i, count = run.index, run.steps
        falling = max(self.strength / (count + 1) * (count + 1 - i), self.floor)
        return falling + self.strength * self.swell * sine(i / count, run)


@dataclass(frozen=True, eq=False)
class Nudge(Hook):
    """The state displaced at the start of each step, by a share of its own size: ``x + share r g / rms(g)``.

    ``r = rms(x)`` and ``g = grad(x / max(r, 1))``, each over one sample, so that what the gradient looks at has unit
    size at every noise level. No extra call of the denoiser, and none of the gradient's length matters.

    Args:
        grad: ``grad(u, level, cond)``, the gradient of a per-sample log-density, such as
            ``condiff.guidance.gradient(log_prob)``.
        share: a number, or a function of the run such as :class:`SineShare`.

    Raises:
        BadValue: a gradient of another shape than the state's.
    """

    continuous: ClassVar[bool] = True

    grad: Callable[[Tensor, Level, Any], Tensor]
    share: float | Callable[[Run], float] = field(default_factory=SineShare)

    def before(self, x: Tensor, run: Run) -> Tensor:
        share = self.share(run) if callable(self.share) else self.share
        if share == 0.0:
            return x
        size = rms(x)
        g = self.grad(x / size.clamp_min(1.0), run.t, run.cond)
        if g.shape != x.shape:
            raise BadValue(f"a gradient of shape {tuple(g.shape)} must have the state's, {tuple(x.shape)}")
        length = rms(g)
        # Where the gradient vanishes there is no direction, and nothing moves.
        return x + share * size * g / torch.where(length > 0.0, length, 1.0)
