"""DPM-Solver++ and DPM-Solver, multistep: Lu et al. 2022b (2211.01095), alg. 2; Lu et al. 2022a (2206.00927)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, unknown
from condiff.process.level import Level
from condiff.sampling.solvers import exponential
from condiff.sampling.solvers.exponential import Steps, back
from condiff.sampling.solvers.multistep import Columns, Multistep

RULES = ("midpoint", "adams")
FEW_STEPS = 15  # grids shorter than this are the ones that `lower_order_final` is for


def check_order(order: int, highest: int) -> None:
    if isinstance(order, bool) or order not in range(1, highest + 1):
        raise BadValue(f"order must be one of {', '.join(map(str, range(1, highest + 1)))}, got {order!r}")


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    """DPM-Solver++ 1, 2M and 3M on the prediction of x0; with ``noise = 1`` its SDE versions.

    Args:
        order: 1 (DDIM), 2 (2M) or 3 (3M).
        noise: level of fresh noise relative to the reverse SDE: 0 the ODE, 1 the reverse SDE, any number between or
            above. Marginals are the same for all, up to discretisation.
        rule: second-order weight of the last difference: ``"midpoint"`` (published default) or ``"adams"``, the exact
            integral of the line through both evaluations ("heun" in diffusers). Third order is always exact.
        lower_order_final: on grids of fewer than 15 steps, the last step is of order 1 and the one before of order 2.
        euler_at_final: the last step is of order 1 on any grid.
        as_released: the third-order term with half its weight, as in the official code and diffusers, which makes 3M
            second-order accurate.

    A step to or from a level without noise or without data is a DDIM step. Upwards (to more noise) it follows the ODE.
    """

    order: int = 2
    noise: float = 0.0
    rule: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    as_released: bool = False

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        if not self.noise >= 0.0:
            raise BadValue(f"noise must be >= 0, got {self.noise}")

    @property
    def stochastic(self) -> bool:
        return self.noise > 0.0

    @property
    def relative_noise(self) -> float:
        return self.noise

    @property
    def remembers(self) -> bool:
        return self.order > 1

    @property
    def kind(self) -> str:
        return "x0"

    def columns(self, levels: Sequence[Level]) -> Columns:
        g = exponential.columns(levels)
        data, noise, h = g.data[1:], g.noise[1:], g.h
        usable = _usable(g, self)
        if self.noise > 0.0 and not levels[0].process.noise_law.gaussian:
            raise Incompatible(f"{self} follows a score, which {levels[0].process} hasn't: use noise=0")
        if self.noise == 0.0:
            extra = _extra(h, 1.0, usable, self)
            std = torch.zeros_like(h)
        else:
            n = torch.where(h < 0.0, 0.0, self.noise)
            extra = _extra(h, 1.0 + n, usable, self)
            std = noise * torch.sqrt(-torch.expm1(-2.0 * _times(n, h)))
            noise = noise * torch.exp(-_times(n, h))
        present, *past = (data * w for w in extra)
        return Columns(data + present, noise, g.source[1:], past, std, (data, noise))


@dataclass(frozen=True)
class DPMSolver(Multistep):
    """DPM-Solver 1, 2 and 3 (multistep) on the prediction of the noise. With ``rule="adams"`` it is DEIS in log rho.

    Better than :class:`DPMSolverPP` without guidance at high orders, unstable with large scales (Lu 2022b).
    The options are those of :class:`DPMSolverPP`.
    """

    order: int = 2
    rule: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    as_released: bool = False

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)

    @property
    def remembers(self) -> bool:
        return self.order > 1

    @property
    def kind(self) -> str:
        return "noise"

    def columns(self, levels: Sequence[Level]) -> Columns:
        g = exponential.columns(levels)
        data, noise = g.data[1:], g.noise[1:]
        present, *past = (noise * w for w in _extra(g.h, -1.0, _usable(g, self), self))
        return Columns(data, noise + present, g.source[1:], past, torch.zeros_like(data), (data, noise))


def _times(n: Tensor, h: Tensor) -> Tensor:
    """``n h`` with ``0 inf = 0``."""
    return torch.where(n == 0.0, 0.0, n * h)


def _usable(g: Steps, solver: DPMSolverPP | DPMSolver) -> list[Tensor]:
    """Where differences may be used, with the order lowered at the end as the options say."""
    orders = [solver.order] * g.count
    if solver.lower_order_final and g.count < FEW_STEPS:
        orders[-2:] = [min(solver.order, 2), 1][-len(orders) :]
    if solver.euler_at_final:
        orders[-1] = 1
    return exponential.capped(exponential.reach(g.h, solver.order - 1), orders)


def _extra(h: Tensor, k: float | Tensor, usable: list[Tensor], solver: DPMSolverPP | DPMSolver) -> list[Tensor]:
    """Weights of the corrections to the first-order step, newest evaluation first."""
    nodes = [torch.zeros_like(h)]
    for j in range(1, solver.order):
        nodes.append(nodes[-1] - back(h, j))
    moment = exponential.moments(h, k, solver.order)
    integrals = exponential.newton(nodes, moment)
    if solver.order == 3 and solver.as_released:
        integrals[2] = integrals[2] - 0.5 * moment[2]
    if solver.order >= 2 and solver.rule == "midpoint":
        half = 0.5 * h * moment[0]
        integrals[1] = torch.where(usable[1], integrals[1], half) if solver.order == 3 else half
    return exponential.corrections(nodes, integrals, usable)
