"""Adaptive integration of the probability-flow ODE, in either direction, through torchdiffeq (extra [ode])."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate, Incompatible, NonFinite, require_extra, unknown
from condiff.process.algebra import combine
from condiff.process.gaussian import Process
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.loop import Run
from condiff.sampling.solver import Solver, State

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@dataclass(frozen=True)
class Adaptive(Solver):
    """``dx / dt = velocity(x, t)`` with steps chosen to meet tolerances, between the times of a grid.

    ``grid=[1.0, 0.0]`` lets the integrator alone choose; ``Step.nfe`` counts its evaluations. All rows share the
    steps, which are chosen so that the worst row meets the tolerances: a row depends on its neighbours within them.

    At a noise-free end the velocity is 0 / 0 in most parameterisations. There integration stops (or begins) at a
    noise-to-data ratio of ``floor``, and the rest is one DDIM step, exact to ``floor^2``.

    Args:
        rtol, atol: tolerances.
        method: an adaptive method of torchdiffeq.
        floor: by default the fourth root of the dtype's precision: 1.2e-4 for float64, 0.019 for float32.

    Raises:
        BadValue: tolerances that aren't positive, an unknown method.
        Incompatible: a time per row.
        MissingExtra: without torchdiffeq.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    method: str = "dopri5"
    floor: float | None = None

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0):
            raise BadValue(f"tolerances must be positive, got rtol={self.rtol}, atol={self.atol}")
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.floor is not None and not 0.0 < self.floor < 1.0:
            raise BadValue(f"floor must lie in (0, 1), got {self.floor}")

    def plan(self, levels: Sequence[Level]) -> list[None]:
        if any(isinstance(level.t, Tensor) for level in levels):
            raise Incompatible("Adaptive integrates all rows over one time; use a fixed-step solver for a time per row")
        return [None] * (len(levels) - 1)

    def step(self, x: Tensor, c: None, state: State, run: Run) -> tuple[Tensor, Prediction | None, None]:
        process, first = run.denoiser.process, []

        def velocity(t: float, x: Tensor) -> Tensor:
            prediction = run.denoise(x, process.at(t))
            first[:] = first or [prediction]
            return prediction.velocity

        start, end = ends(process, run.t, run.s, self.floor or default_floor(x.dtype))
        if start is not run.t:
            x = combine((start.data, x), (start.source, run.cond.source if process.has_source else x))
        if start.t != end.t:
            (x,) = odeint(lambda t, y: (velocity(t, y[0]),), (x,), float(start.t), float(end.t), self)
        if end is not run.s:
            prediction = run.denoise(x, end)
            first[:] = first or [prediction]
            x = prediction.linear(run.s.data, 0.0, run.s.source)
        return x, first[0] if first else None, None


def default_floor(dtype: torch.dtype) -> float:
    """Balances the last step's error, ``floor^2``, with the rounding of ``x_t - data x0`` divided by ``noise^2``."""
    return torch.finfo(dtype).eps ** 0.25


def ends(process: Process, t: Level, s: Level, floor: float) -> tuple[Level, Level]:
    """The levels between which the velocity is safe: t and s, or the level of noise ``floor`` beside a clean one.

    Between two clean ends (an interpolant from data to its endpoint) there is no noise-to-data ratio to go by: the
    velocity itself has to exist at both, as it does for networks that predict it.

    Raises:
        Degenerate: from an endpoint alone to a noisy level.
    """
    if (t.noise != 0.0) == (s.noise != 0.0):
        return t, s
    if t.noise == 0.0 and t.data == 0.0:  # the data's part of the next state isn't known
        raise Degenerate(f"Adaptive can't leave t = {t.t} of {process}, an endpoint without noise: start below it")
    noisy = s if t.noise == 0.0 else t
    if noisy.noise <= floor * noisy.data:
        return noisy, noisy
    near = floor_level(process, t if t.noise == 0.0 else s, noisy, floor)
    return (near, s) if t.noise == 0.0 else (t, near)


def floor_level(process: Process, clean: Level, noisy: Level, floor: float) -> Level:
    """The level between with ``noise = floor data``, by bisection."""
    low, high = clean.t, noisy.t
    for _ in range(60):
        middle = process.at(0.5 * (low + high))
        low, high = (middle.t, high) if middle.noise <= floor * middle.data else (low, middle.t)
    return process.at(high)


def odeint(
    field: Callable[[float, Any], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    start: float,
    end: float,
    solver: Adaptive,
) -> tuple[Tensor, ...]:
    """The state at ``end`` of ``dstate / dt = field(t, state)``; error norms are RMS per row, the worst row counts.

    Raises:
        NonFinite: when steps become too small or the state isn't finite.
    """
    library = require_extra("torchdiffeq", "ode")
    shapes = [y.shape for y in state]
    batch = shapes[0][0]
    sizes = [y.numel() // batch for y in state]

    def split(flat: Tensor) -> tuple[Tensor, ...]:
        parts = flat.split(sizes, dim=1)
        return tuple(p.reshape(shape) for p, shape in zip(parts, shapes, strict=True))

    def join(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.reshape(batch, -1) for p in parts], dim=1)

    low, high = min(start, end), max(start, end)
    device = state[0].device
    options = {
        "norm": worst_row,
        "dtype": torch.float64,
        # The field doesn't exist beyond the interval: no trial evaluation there, and the last step lands on its end.
        "first_step": 0.01 * (high - low),
        "step_t": torch.tensor([end], dtype=torch.float64, device=device),
    }
    try:
        path = library.odeint(
            lambda t, y: join(field(min(max(float(t), low), high), split(y))),
            join(state),
            torch.tensor([start, end], dtype=torch.float64, device=device),
            rtol=solver.rtol,
            atol=solver.atol,
            method=solver.method,
            options=options,
        )
    except AssertionError as error:
        raise NonFinite(f"{solver} failed between t = {start:.6g} and {end:.6g}: {error}") from error
    return split(path[-1])


def worst_row(error: Tensor) -> Tensor:
    """The largest RMS of a row."""
    if error.ndim < 2:
        return error.abs().amax()
    return error.square().mean(dim=1).sqrt().amax()
