"""UniPC: a predictor and a corrector that share their evaluations, Zhao et al. 2023 (2302.04867)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import unknown
from condiff.process.level import Level
from condiff.sampling.solvers import exponential
from condiff.sampling.solvers.dpm import check_order
from condiff.sampling.solvers.exponential import back
from condiff.sampling.solvers.multistep import Columns, Multistep

VARIANTS = ("bh1", "bh2")
PREDICT = ("x0", "noise")


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniP of the given order, each step corrected (UniC) by the evaluation that the next step makes anyway.

    The corrector changes the state by ``sum_j d_j value_j``, with values that the next predictor combines too, so
    that both are one combination: a step costs no more than one of a multistep rule. It acts on the state as it is
    (a hook may have changed it), not on a copy of the state before.

    Args:
        order: 1, 2 or 3; the corrector makes the rule one order better.
        variant: ``B(h) = h`` ("bh1") or ``e^h - 1`` ("bh2"). They differ in the weights of UniP-2 and UniC-1 only;
            at higher orders the conditions fix the weights.
        predict: the quantity that is extrapolated, "x0" (for guided sampling) or "noise".
        lower_order_final: the order comes down to 1 towards the end of the grid.
        skip_corrector: indices of steps whose result is not corrected.
    """

    order: int = 2
    variant: str = "bh2"
    predict: str = "x0"
    lower_order_final: bool = True
    skip_corrector: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS)
        if self.predict not in PREDICT:
            raise unknown("quantity to predict", self.predict, PREDICT)

    @property
    def kind(self) -> str:
        return self.predict

    def columns(self, levels: Sequence[Level]) -> Columns:
        g = exponential.columns(levels)
        k, main = (1.0, g.noise) if self.predict == "x0" else (-1.0, g.data)
        scale = g.data if self.predict == "x0" else g.noise
        usable = self._usable(g.h)
        predictor = [scale[1:] * w for w in self._predictor(g.h, k, usable)]
        corrector = [scale[:-1] * w for w in self._corrector(g.h, k, usable)]
        corrector = [w - back(p, 1) for w, p in zip(corrector, [0.0 * predictor[0], *predictor], strict=True)]
        fixed = self._corrected(g.h)
        ratio = main[1:] / main[:-1]  # how a change of x_t arrives at x_s
        total = [torch.where(fixed, ratio * w, 0.0) for w in corrector]
        total = [t + p for t, p in zip(total, [*predictor, torch.zeros_like(g.h)], strict=True)]
        present, *past = total
        data, noise = g.data[1:], g.noise[1:]
        rows = (data + present, noise) if self.predict == "x0" else (data, noise + present)
        return Columns(*rows, g.source[1:], past, torch.zeros_like(data), (data, noise))

    def _usable(self, h: Tensor) -> list[Tensor]:
        count = h.shape[0]
        orders = [min(self.order, count - i) if self.lower_order_final else self.order for i in range(count)]
        return exponential.capped(exponential.reach(h, self.order - 1), orders)

    def _corrected(self, h: Tensor) -> Tensor:
        """Where a step begins by correcting its state: the step before it was finite and went the same way."""
        earlier = back(h, 1)
        ok = torch.isfinite(earlier) & (h * earlier > 0.0)
        for i in self.skip_corrector:
            ok[i + 1 : i + 2] = False
        return ok

    def _half(self, h: Tensor, k: float, first: Tensor) -> Tensor:
        """The integral of u in the two rules that B(h) decides: ``h B(h) / 2``."""
        return 0.5 * h * (first if self.variant == "bh2" else k * h)

    def _predictor(self, h: Tensor, k: float, usable: list[Tensor]) -> list[Tensor]:
        """Weights of the evaluations at t, 1 and 2 steps before."""
        nodes = _nodes(h, self.order)
        moment = exponential.moments(h, k, self.order)
        integrals = exponential.newton(nodes, moment)
        if self.order >= 2:
            half = self._half(h, k, moment[0])
            integrals[1] = torch.where(usable[1], integrals[1], half) if self.order == 3 else half
        return exponential.corrections(nodes, integrals, usable)

    def _corrector(self, h: Tensor, k: float, usable: list[Tensor]) -> list[Tensor]:
        """Weights for the step before, of the evaluations at t (its end), 1 (its start), 2 and 3 steps before."""
        h = back(h, 1)
        start, *older = _nodes(h, self.order)
        nodes = [start, h, *older]
        moment = exponential.moments(h, k, self.order + 1)
        integrals = exponential.newton(nodes, moment)
        more = [back(ok, 1) for ok in usable]
        half = self._half(h, k, moment[0])
        integrals[1] = torch.where(more[0], integrals[1], half) if more else half
        weights = exponential.corrections(nodes, integrals, [torch.ones_like(h, dtype=torch.bool), *more])
        return [weights[1], weights[0], *weights[2:]]


def _nodes(h: Tensor, count: int) -> list[Tensor]:
    """Places of the last ``count`` evaluations, relative to the newest."""
    nodes = [torch.zeros_like(h)]
    for j in range(1, count):
        nodes.append(nodes[-1] - back(h, j))
    return nodes
