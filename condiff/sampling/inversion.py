"""Inversion: from data to the noise that a deterministic solver turns into it, along the same grid.

DDIM inversion (Dhariwal & Nichol 2021; Mokady 2023) is this with :class:`DDIM`; any solver without noise can be walked
backwards. The path is kept: editing methods anchor on it, and resampling from any of its states is sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible
from condiff.process.algebra import scale
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.process.prediction import Prediction
from condiff.sampling.grid import Grid
from condiff.sampling.loop import Hook, as_grid, trajectory
from condiff.sampling.solver import Solver


@dataclass(frozen=True, eq=False)
class Inversion:
    """A path from data to noise.

    Args:
        times: (N + 1,), increasing.
        path: the states at these times; the first one is what was inverted.
        nfe: network evaluations.
    """

    times: Tensor
    path: list[Tensor]
    nfe: int

    @property
    def latent(self) -> Tensor:
        """The last state; with ``times.flip(0)`` as grid, sampling from it leads back."""
        return self.path[-1]


class AtData:
    """A denoiser that isn't asked at a noise-free level, where x_t is the data: x0 = x_t, E[noise | x_t] = 0.

    Of rows or frames with times of their own, what is clean is overruled.
    """

    def __init__(self, denoiser: Denoises) -> None:
        self.denoiser, self.process, self.shape = denoiser, denoiser.process, denoiser.shape
        self.kinds = getattr(denoiser, "kinds", None)
        self.spared = 0

    def start(self) -> None:
        self.spared = 0
        if hasattr(self.denoiser, "start"):
            self.denoiser.start()  # type: ignore[attr-defined]

    def __call__(self, x_t: Tensor, t: Time, cond: Conditions | None = None) -> Prediction:
        level = self.process.at(t)
        clean = _clean(level)
        if clean is False:
            return self.denoiser(x_t, level, cond)
        if clean is True:
            self.spared += 1
            source = cond.source if cond is not None else None
            return Prediction(x_t, level, {"x0": x_t, "noise": torch.zeros_like(x_t)}, source)
        said = self.denoiser(x_t, level, cond)
        noisy = torch.where(clean, 0.0, 1.0).double()
        x0 = said.linear(x0=noisy) + scale(1.0 - noisy, x_t)
        return Prediction(x_t, level, {"x0": x0, "noise": said.linear(noise=noisy)}, said.source, said.aux)


def _clean(level: Level) -> bool | Tensor:
    """Whether the level is that of clean data: for all, for none, or a mask of the entries where it is."""
    if not isinstance(level.noise, Tensor):
        return bool(level.noise == 0.0 and level.data == 1.0)
    clean = (level.noise == 0.0) & (level.data == 1.0)
    return bool(clean.all()) if bool(clean.all()) or not bool(clean.any()) else clean


def invert(
    denoiser: Denoises,
    x: Tensor,
    *,
    solver: Solver,
    cond: Mapping[str, Any] | Conditions | None = None,
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    hooks: Sequence[Hook] = (),
    grad: bool = False,
    ask_at_data: bool = False,
) -> Inversion:
    """Walk the sampling grid backwards, from ``x`` at its last time to its first.

    Sampling from the result along the same grid leads back to x up to the solver's error. At a noise-free level the
    denoiser isn't called: there x0 is x itself.

    Args:
        denoiser, cond: as in sampling; guidance of a scale other than 1 makes the way back less accurate.
        x: clean data (or the state at the grid's last time), (B, ...).
        solver: one that draws no noise.
        steps, grid: the *sampling* grid, from noise to data.
        grad: keep the graph of all evaluations.
        ask_at_data: call the denoiser at a noise-free level too: one that was taught what to say there, such as an
            encoder of :mod:`condiff.distill`.

    Raises:
        Incompatible: a stochastic solver, a joint state, tokens.
        BadValue: a grid that doesn't decrease.

    Example:
        >>> found = invert(model, image, solver=DDIM(), steps=50, cond=cond)
        >>> again = sample(model, initial=found.latent, grid=found.times.flip(0), solver=DDIM(), cond=cond)
    """
    if solver.stochastic:
        raise Incompatible(f"{solver} draws noise and can't be inverted; use a deterministic one, such as DDIM()")
    if not isinstance(denoiser.process, Process):
        raise Incompatible(f"invert walks a linear-Gaussian process of one variable, not {denoiser.process}")
    times = as_grid(grid, steps, denoiser.process).flip(0)
    if not bool((times[1:] >= times[:-1]).all()):
        raise BadValue("invert takes the sampling grid, from noise to data: its times must decrease")
    wrapped: Any = denoiser if ask_at_data else AtData(denoiser)
    path, nfe = [x], 0
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        for step in trajectory(wrapped, x, solver=solver, cond=cond, grid=times, rng=0, hooks=hooks):
            path.append(step.x_s)
            nfe = step.nfe
    return Inversion(times, path, nfe - getattr(wrapped, "spared", 0))
