"""DPM-Solver-v3: steps along the linear part that a model itself has, Zheng et al. 2023 (2310.13268)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.model_statistics import ModelStatistics
from condiff.sampling.solver import Entry, Solver, State
from condiff.sampling.solvers.dpm import check_order
from condiff.sampling.solvers.quadrature import Line, Step


class Weights(NamedTuple):
    """One step: the update, its first-order part for a state that has lost its past, f's own weights."""

    line: Line
    plain: Line
    ratio: float  # noise / data: f = ratio E[z] - own x
    own: Tensor
    keep: int  # evaluations that the next step wants


class Linear(NamedTuple):
    """A DDIM step, to or from a level that has no lam, or where the time repeats."""

    x0: float
    noise: float


@dataclass(frozen=True)
class DPMSolverV3(Solver):
    """One evaluation a step, fewer steps: 5 to 20 where others need more, with statistics measured on the model once.

    With ``y = x_t / data``, ``lam = log(data / noise)`` and the tables l, s, b of :class:`ModelStatistics`, the rest
    ``f = noise E[z] / data - l y`` follows ``df / dlam = s f + b`` nearly, and the step is exact for an f that does::

        L = int l, S = int s, B = int e^-S b                                  from lam_t on
        x_s = data_s / data_t e^-L x_t - data_s e^-L int e^(L + S) (g + B),   g = e^-S f - B

    where g, nearly constant, is the polynomial through the last ``order`` values. The integrals are trapezoids over
    the nodes between two levels. ``l = 1, s = b = 0`` at order 1 without corrector is DDIM.

    The defaults are the authors' for conditional and guided models; for plain ones they take
    ``order=3, pseudo_corrector=False``, and for large guidance scales ``corrector_until=0.5``.

    Args:
        statistics: of this model, guidance, shape and range; any other is refused.
        order: 1, 2 or 3.
        corrector: use each evaluation once more, to correct the state it was made at. No extra evaluation.
        corrector_until: correct at times up to this one only.
        pseudo_predictor: the n-th derivative of g from its newest n + 1 values instead of all. For about 5 steps.
        pseudo_corrector: the same in the corrector, which then has one order, and one value, more.
        lower_order_final: the order comes down to 1 towards the end of the grid.

    The grid lies in the range of the statistics: ``grid=statistics.grid()``. A last step from there to t = 0, or a
    first one from a level without data, is a DDIM step.

    Example:
        >>> statistics = measure_statistics(model, data=x0, nodes=250)
        >>> sample(model, solver=DPMSolverV3(statistics), grid=statistics.grid(), steps=8, num=4, seed=0)
    """

    statistics: ModelStatistics
    order: int = 2
    corrector: bool = True
    corrector_until: float = 1.0
    pseudo_predictor: bool = False
    pseudo_corrector: bool = True
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, ModelStatistics):
            raise BadType(f"DPMSolverV3 takes the statistics of a model, got {self.statistics!r}: measure_statistics")
        check_order(self.order, 3)
        if not 0.0 <= self.corrector_until <= 1.0:
            raise BadValue(f"corrector_until must lie in [0, 1], got {self.corrector_until}")

    @property
    def remembers(self) -> bool:
        return self.order > 1 or self.corrector

    def check(self, denoiser: Any, x: Any) -> None:
        if not isinstance(x, Tensor):
            raise Incompatible(f"{type(self).__name__} steps one continuous state, not the joint {denoiser.process}")
        self.statistics.check(denoiser, tuple(x.shape[1:]))

    # Coefficients

    def plan(self, levels: Sequence[Level]) -> list[Weights | Linear]:
        lam = self._places(levels)
        orders = self._orders(lam)
        steps = [
            Step(self.statistics, lam[i - order + 1 : i + 1][::-1], lam[i + 1]) if order else None
            for i, order in enumerate(orders)
        ]
        plan: list[Weights | Linear] = []
        for i, (t, s) in enumerate(itertools.pairwise(levels)):
            step, before = steps[i], steps[i - 1] if self._joined(lam, i) else None
            if step is None:
                to = t if t.t == s.t else s
                plan.append(Linear(float(to.data), float(to.noise)))
            else:
                plan.append(self._weights(step, before, t, s))
        wants = [len(c.line.past) - 1 if isinstance(c, Weights) else 0 for c in plan]
        return [
            c._replace(keep=keep) if isinstance(c, Weights) else c
            for c, keep in zip(plan, [*wants[1:], 0], strict=True)
        ]

    def _places(self, levels: Sequence[Level]) -> list[float]:
        """lam of the levels; infinite for a clean or a pure-noise one.

        Raises:
            Incompatible: a time per row, another process.
            BadValue: levels outside of the tables, more steps than intervals.
        """
        table = self.statistics
        if isinstance(levels[0].t, Tensor):
            raise Incompatible(
                "DPMSolverV3 takes one time for the whole batch: its tables have the shape of a sample. For a time per "
                "row use UniPC()"
            )
        if not table.fits(levels[0].process):
            raise Incompatible(f"{table} was measured on {table.process}, this model follows {levels[0].process}")
        if len(levels) > len(table.l):
            raise BadValue(f"{len(levels) - 1} steps need at least as many intervals, {table} has {len(table.l) - 1}")
        places = [0.5 * float(level.log_snr) for level in levels]
        low, high = table.ends
        slack = 1e-6 * (high - low)
        for place, level in zip(places, levels, strict=True):
            if abs(place) != float("inf") and not low - slack <= place <= high + slack:
                raise BadValue(
                    f"t = {level.t} lies outside of {table}: take grid=statistics.grid(), or times from "
                    f"{table.start:.6g} to {table.end:.6g}, and t = 0 as the last one if wanted"
                )
        return places

    def _joined(self, lam: Sequence[float], i: int) -> bool:
        """Whether step i goes on in the direction of the one before it, both finite and not empty."""
        if i == 0:
            return False
        before, now = lam[i] - lam[i - 1], lam[i + 1] - lam[i]
        return before * now > 0.0 and abs(before) != float("inf") and abs(now) != float("inf")

    def _orders(self, lam: Sequence[float]) -> list[int]:
        """The order of each step, 0 for a DDIM step."""
        count, orders, run = len(lam) - 1, [], 0
        for i in range(count):
            h = lam[i + 1] - lam[i]
            run = 0 if not abs(h) < float("inf") or h == 0.0 else run + 1 if self._joined(lam, i) else 1
            order = min(run, self.order)
            orders.append(min(order, count - i) if self.lower_order_final else order)
        return orders

    def _weights(self, step: Step, before: Step | None, t: Level, s: Level) -> Weights:
        """The step's update, of the state as the evaluation at t corrects it."""
        data, ratio = float(s.data), float(s.data / t.data)
        line = step.predictor(ratio, data, self.pseudo_predictor)
        plain = step.predictor(ratio, data, self.pseudo_predictor, order=1)
        if before is not None and self.corrector and t.t <= self.corrector_until:
            fix = before.correction(float(t.data), self.pseudo_predictor, self.pseudo_corrector)
            if fix is not None:  # x_t + sum_j past_j f_j + constant, in place of x_t
                past = itertools.zip_longest(line.past, fix.past, fillvalue=torch.zeros((), dtype=torch.float64))
                line = Line(line.x, [a + line.x * b for a, b in past], line.constant + line.x * fix.constant)
        return Weights(line, plain, float(t.noise / t.data), step.own / float(t.data), 0)

    # Steps

    def advance(self, x: Tensor, prediction: Prediction, c: Weights | Linear, state: State) -> tuple[Tensor, float]:
        if isinstance(c, Linear):
            state.history.clear()
            return prediction.linear(c.x0, c.noise), 0.0
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        f = c.ratio * prediction.noise.to(y) - c.own.to(y) * y
        values = [f, *(e.value for e in state.history)]
        line = c.line if len(values) >= len(c.line.past) else c.plain
        mean = line.x.to(y) * y + line.constant.to(y)
        for weight, value in zip(line.past, values, strict=False):
            mean = mean + weight.to(y) * value
        state.push(Entry(x, f, prediction.level), c.keep)
        return mean.to(x.dtype), 0.0
