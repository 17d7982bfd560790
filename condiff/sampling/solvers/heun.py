"""Heun's method with churn: Karras et al. 2022 (2206.00364), alg. 1 and 2, for any schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State, hold
from condiff.sampling.solvers.exponential import columns


class Weights(NamedTuple):
    start: Level  # after churn, where the first slope is taken
    churn: tuple[Weight, Weight] | None  # ratio and standard deviation of the kernel from t to there
    end: Level  # where the second slope is taken
    first_order: bool | Tensor
    slope: Weight  # half the step in sigma, times data_s


@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule in ``sigma = noise / data`` for ``x / data``, whose slope is the predicted noise.

    ``x' = data_s x0 + noise_s noise``, ``x_s = x' + (noise_s - noise_t data_s / data_t) (noise' - noise) / 2``.
    Second order, two evaluations a step. A step to a noise-free level, and one from or to ``data = 0``, is ``x'``.
    The same rule in t, on the velocity, is ``RungeKutta("heun")``.

    Args:
        churn: S_churn; a step first adds noise up to ``(1 + min(churn / N, sqrt(2) - 1)) sigma``.
        churn_min, churn_max: the range of sigma in which it does.
        churn_noise: S_noise, a factor on that noise.
        corrector: False leaves out the second evaluation: Euler's method in sigma with churn (alg. 2 of k-diffusion).
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    corrector: bool = True

    def __post_init__(self) -> None:
        if not (self.churn >= 0.0 and self.churn_noise >= 0.0 and 0.0 <= self.churn_min <= self.churn_max):
            raise BadValue(f"churn options must be >= 0 and churn_min <= churn_max, got {self}")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0.0

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        starts = self._starts(levels)
        out = []
        for t, start, s in zip(levels[:-1], starts, levels[1:], strict=True):
            first = (s.noise == 0.0) | (s.data == 0.0) | (start.data == 0.0) | (not self.corrector)
            churn = None if start is t else self._churn(t, start)
            if isinstance(first, Tensor):
                end = s.process.at(torch.where(first, start.t, s.t))
                slope = torch.where(first, 0.0, 0.5 * (s.noise - start.noise * s.data / start.data))
            else:
                end, slope = s, 0.0 if first else 0.5 * (s.noise - start.noise * s.data / start.data)
            out.append(Weights(start, churn, end, first, slope))
        return out

    def _starts(self, levels: Sequence[Level]) -> list[Level]:
        """The levels after churn; the level itself where there is none."""
        plain = list(levels[:-1])
        if self.churn == 0.0:
            return plain
        g, process = columns(levels), levels[0].process
        t, s, sigma = g.t[:-1], g.t[1:], (g.noise / g.data)[:-1]
        gamma = min(self.churn / len(plain), math.sqrt(2.0) - 1.0)
        raised = (sigma >= self.churn_min) & (sigma <= self.churn_max) & torch.isfinite(sigma) & (s < t)
        churned = process.levels(torch.where(raised, process.time(-2.0 * torch.log((1.0 + gamma) * sigma)), t))
        if t.ndim > 1:
            return churned  # a draw per step, whatever the other rows do
        return [c if up else level for c, level, up in zip(churned, plain, raised.tolist(), strict=True)]

    def _churn(self, t: Level, start: Level) -> tuple[Weight, Weight]:
        ratio, std = t.process.kernel(t, start)
        return ratio, self.churn_noise * std

    def step(self, x: Tensor, c: Weights, state: State, run: Any) -> tuple[Tensor, Prediction, Tensor | None]:
        fresh, y = None, x
        if c.churn is not None:
            fresh = run.draw(x)
            y = combine((c.churn[0], x), (c.churn[1], fresh))
        prediction = run.denoise(y, c.start)
        s = run.s
        x_s = prediction.linear(s.data, s.noise, s.source)
        if c.first_order is not True and not (isinstance(c.first_order, Tensor) and bool(c.first_order.all())):
            there = run.denoise(hold(c.first_order, y, x_s), c.end)
            x_s = combine((1.0, x_s), (1.0, there.linear(noise=c.slope)), (-1.0, prediction.linear(noise=c.slope)))
        mean, _, _ = self.finish(x, x_s, 0.0, prediction, run)
        return mean, prediction, fresh
