"""Log-likelihood by the instantaneous change of variables along the probability-flow ODE (Song 2021, sec. 4.3).

``log p_0(x_0) = log p_1(x_1) + int_0^1 div velocity(x_t, t) dt`` with ``dx / dt = velocity``. The divergence is exact
(one backward pass per dimension) or Hutchinson's estimate ``e . J e`` with E[e e^T] = 1 (one per probe).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.derivatives import divergence, draw_probes
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.gaussian import Process
from condiff.process.level import Level
from condiff.process.prior import Moments, Prior
from condiff.random import Source, as_source
from condiff.sampling.adaptive import Adaptive, default_floor, ends, odeint
from condiff.sampling.grid import Grid
from condiff.sampling.loop import as_grid

METHODS = ("exact", "hutchinson")
Pair = tuple[Tensor, Tensor]  # the state (B, ...) and the integrated divergence (B, probes)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """A log-likelihood that says what it is.

    Args:
        log_prob: nats per sample, (B,) float64.
        kind: ``"exact"`` (up to integration error), ``"estimate"`` (unbiased, by probes) or ``"lower bound"`` (an
            unbiased estimate of one).
        std_error: of the estimate, (B,), from two probes or paths on.
        latent: the state at t = 1, of the first path where there are several.
        nfe: network evaluations.
    """

    log_prob: Tensor
    kind: str
    std_error: Tensor | None
    latent: Tensor
    nfe: int

    def bits_per_dim(self, width: float = 1.0) -> Tensor:
        """``-log2(p width^D) / D``, (B,): for data in bins of this width, 2 / 255 for 8-bit images in [-1, 1].

        With width = 1 it is the continuous density's; either is a bound for discrete data only if the data were
        dequantised.
        """
        if not width > 0.0:
            raise BadValue(f"width must be positive, got {width}")
        dims = self.latent[0].numel()
        return -self.log_prob / (dims * math.log(2.0)) - math.log2(width)


def log_likelihood(
    denoiser: Denoises,
    x: Tensor,
    cond: Mapping[str, Any] | Conditions | None = None,
    *,
    method: str = "exact",
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    solver: Adaptive | None = None,
    probes: int | Tensor = 1,
    probe: str = "rademacher",
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    prior: Prior | None = None,
    chunk: int = 64,
) -> Likelihood:
    """``log p(x | cond)`` of the model's probability-flow ODE.

    Rows must not see each other (batch normalisation in training mode would). From clean data the ODE first makes one
    step to a small noise (``Adaptive.floor``), where the velocity of all parameterisations is safe.

    Args:
        denoiser: any denoiser; the law that it samples along the ODE is the one measured.
        x: clean data (B, ...); use float64 for sharp results.
        method: ``"exact"`` or ``"hutchinson"``.
        steps, grid: classical Runge-Kutta (4 evaluations a step) on the *sampling* grid; 100 steps without any choice.
        solver: an :class:`Adaptive` one instead.
        probes: how many for Hutchinson, or given ones (P, B, ...); the same along the whole path.
        probe: ``"rademacher"`` or ``"normal"``.
        prior: law of the state at the grid's first time, pure noise by default. Where data(1) > 0 (VPLinear, EDM)
            that is an approximation: ``Moments(mean, var)`` with the data's moments is a better one. Of a model that
            doesn't see its endpoint it is the endpoints' law, :class:`~condiff.process.EndpointLaw`.
        chunk: backward passes at once; 1 for networks whose backward pass can't be vectorised.

    Raises:
        BadValue: an unknown method, probes of another shape, a grid that doesn't decrease, a missing endpoint.
        Incompatible: a prior without density, a joint state, tokens.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if not isinstance(denoiser.process, Process):
        raise Incompatible(f"a likelihood along the ODE is of one continuous state, not of {denoiser.process}")
    if prior is None and not denoiser.process.noise_law.gaussian:
        raise Incompatible(f"the noise of {denoiser.process} isn't Gaussian: give prior=, with a density")
    if not x.dtype.is_floating_point:
        raise BadType(f"x must be a floating point tensor, got {x.dtype}")
    times = as_grid([1.0, 0.0] if solver and grid is None else grid, _steps(steps, grid, solver), denoiser.process)
    times = times.flip(0)
    if times.ndim != 1 or not bool((times[1:] > times[:-1]).all()):
        raise BadValue("a likelihood takes the sampling grid, from noise to data: its times must decrease")
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    check_endpoint(denoiser, cond, prior)
    drawn = None if method == "exact" else draw_probes(probes, probe, x, as_source(rng))
    flow = _Flow(denoiser, cond, drawn, chunk)
    state, total = flow.run(x.detach(), denoiser.process.levels(times), solver)
    level = denoiser.process.levels(times[-1:])[0]
    each = at_prior(prior, state, level, cond.source)[:, None] + total
    error = each.std(1) / math.sqrt(each.shape[1]) if each.shape[1] > 1 else None
    kind = "exact" if method == "exact" else "estimate"
    return Likelihood(each.mean(1), kind, error, state, flow.nfe)


def check_endpoint(denoiser: Denoises, cond: Conditions, prior: Prior | None) -> None:
    """
    Raises:
        BadValue: neither the endpoint of each sample nor the endpoints' law is known.
    """
    if denoiser.process.has_source and cond.source is None and prior is None:
        raise BadValue(
            f"{denoiser.process} moves to an endpoint: give a condition of kind 'endpoint', or for a model that "
            "doesn't see it the endpoints' law, prior=EndpointLaw(...)"
        )


def at_prior(prior: Prior | None, state: Tensor, level: Level, source: Tensor | None) -> Tensor:
    """log-density of the state at the far end, (B,) float64.

    Raises:
        BadValue: no prior where the state still holds the data.
    """
    if prior is None and level.data > 0.05 * level.noise:
        raise BadValue(
            f"at t = {level.t} the state still holds the data (data = {level.data:.3g}, noise = {level.noise:.3g}): "
            "give prior=, its law there"
        )
    return (prior or Moments()).log_prob(state, level, source)


def _steps(steps: int | None, grid: Any, solver: Adaptive | None) -> int | None:
    if steps is None and solver is None and (grid is None or isinstance(grid, Grid)):
        return 100
    if steps is not None and solver is not None:
        raise BadValue("an Adaptive solver chooses its steps: leave steps= out")
    return steps


class _Flow:
    """The augmented ODE: the state and the integral of the divergence."""

    def __init__(self, denoiser: Denoises, cond: Conditions, probes: Tensor | None, chunk: int) -> None:
        self.denoiser, self.cond, self.probes, self.chunk, self.nfe = denoiser, cond, probes, chunk, 0

    def field(self, t: float, state: Pair) -> Pair:
        """``(velocity, divergence)``."""
        return self._quantity("velocity", self.denoiser.process.at(t), state[0])

    def _quantity(self, kind: str, level: Level, x: Tensor) -> Pair:
        """A predicted quantity at x with its divergence."""
        self.nfe += 1
        return divergence(self.denoiser, x, level, self.cond, kind=kind, probes=self.probes, chunk=self.chunk)

    def run(self, x: Tensor, levels: list[Level], solver: Adaptive | None) -> Pair:
        floor = (solver.floor if solver else None) or default_floor(x.dtype)
        first, _ = ends(self.denoiser.process, levels[0], levels[-1], floor)
        count = 1 if self.probes is None else len(self.probes)
        state: Pair = (x, torch.zeros(len(x), count, dtype=torch.float64, device=x.device))
        if first is not levels[0]:
            state = self._leave(x, first)
        times = [float(first.t), *(float(level.t) for level in levels[1:] if level.t > first.t)]
        if solver is not None:
            return self._adaptive(state, times, solver)
        for t, s in pairwise(times):
            state = runge_kutta(self.field, t, s, state)
        return state

    def _leave(self, x: Tensor, level: Level) -> Pair:
        """From clean data to the first noisy level: the trapezoidal rule for ``d(x_t / data) = E[z] d(noise / data)``,
        where E[z] = 0 at the clean end. Exact to the fourth power of the level's noise.
        """
        x, source = level.data * x, self.cond.source
        if self.denoiser.process.has_source and source is not None:
            x = x + level.source * source
        noise, div = self._quantity("noise", level, x)
        return x + 0.5 * level.noise * noise, x[0].numel() * math.log(level.data) + 0.5 * level.noise * div

    def _adaptive(self, state: Pair, times: list[float], solver: Adaptive) -> Pair:
        x, total = state
        dtype = x.dtype
        for t, s in pairwise(times):
            # One dtype for both; the divergence of a float32 state isn't known better than float32 anyway.
            x, total = odeint(self.field, (x, total.to(dtype)), t, s, solver)
        return x, total.double()


def runge_kutta(field: Callable[[float, Pair], Pair], t: float, s: float, state: Pair) -> Pair:
    """The classical fourth-order step."""

    def along(h: float, slope: Pair) -> Pair:
        return state[0] + h * slope[0], state[1] + h * slope[1]

    h = s - t
    k1 = field(t, state)
    k2 = field(t + 0.5 * h, along(0.5 * h, k1))
    k3 = field(t + 0.5 * h, along(0.5 * h, k2))
    k4 = field(s, along(h, k3))
    x, total = (a + 2.0 * b + 2.0 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
    return along(h / 6.0, (x, total))
