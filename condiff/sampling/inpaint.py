"""Inpainting with an unconditional model: known values put into the state at every level, and time travel.

RePaint (Lugmayr 2022): after each step the known part is drawn from ``q(x_s | known)``; stretches of the grid are
walked several times, going up again by drawing from ``q(x_t | x_s)``, so that the unknown part comes to agree with it::

    times = repaint_grid(Uniform().times(process, 50), jump=5, repeats=4)
    sample(model, solver=DDPM(), grid=times, hooks=[Inpaint(image, mask)], num=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue
from condiff.process.level import Level
from condiff.sampling.loop import Hook, Run, Step


@dataclass(frozen=True, eq=False)
class Inpaint(Hook):
    """The known part of the state at each level: ``data known + source y + noise z``, the rest as the solver left it.

    Args:
        known: clean values, of the state's shape (or one that broadcasts to it); read where the mask is true.
        mask: booleans that broadcast to the state, true where known.
        noise: ``"fresh"`` draws z anew at every level (RePaint), ``"fixed"`` once per trajectory (for ODE solvers); or
            z itself, of the state's shape.

    Samples equal ``known`` bit for bit where the mask is true when the grid ends without noise.

    Raises:
        BadType: a mask that isn't boolean.
        BadValue: shapes that don't broadcast to the state's, an unknown kind of noise.
    """

    continuous: ClassVar[bool] = True

    known: Tensor
    mask: Tensor
    noise: str | Tensor = "fresh"
    _fixed: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise BadType(f"mask must be booleans, true where known, got {self.mask.dtype}")
        if not isinstance(self.noise, Tensor) and self.noise not in ("fresh", "fixed"):
            raise BadValue(f"noise must be 'fresh' or 'fixed', got {self.noise!r}")

    def before(self, x: Tensor, run: Run) -> Tensor:
        if run.index > 0:
            return x
        self._fixed[:] = [self.noise.to(x)] if isinstance(self.noise, Tensor) else []
        if self._fixed and self._fixed[0].shape != x.shape:
            raise BadValue(f"noise of shape {tuple(self._fixed[0].shape)} for a state of shape {tuple(x.shape)}")
        for name, part in (("known", self.known), ("mask", self.mask)):
            if not _broadcasts(part, x):
                raise BadValue(f"{name} of shape {tuple(part.shape)} doesn't fit a state of shape {tuple(x.shape)}")
        return self._put(x, run.t, run)

    def after(self, step: Step, run: Run) -> Tensor:
        return self._put(step.x_s, step.s, run)

    def _put(self, x: Tensor, level: Level, run: Run) -> Tensor:
        known = self.known.to(x).expand(x.shape)
        return torch.where(self.mask.to(x.device), self._noised(known, level, run), x)

    def _noised(self, known: Tensor, level: Level, run: Run) -> Tensor:
        if not isinstance(level.noise, Tensor) and level.noise == 0.0 and level.data == 1.0:
            return known
        if not self._fixed or (isinstance(self.noise, str) and self.noise == "fresh"):
            z = run.draw(known)
            self._fixed[:] = [z]
        return run.denoiser.process.forward(known, level, source=run.cond.source, noise=self._fixed[0]).x_t


def _broadcasts(part: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(part.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def repaint_grid(times: Tensor | Sequence[float], jump: int, repeats: int) -> Tensor:
    """A grid in which every stretch of ``jump`` steps, counted from the data side, is walked down ``repeats`` times.

    ``jump=1`` repeats every step (Steered Diffusion). Steps at the noise side that fill no stretch are walked once.

    Raises:
        BadValue: times that don't decrease, jump or repeats below 1 or a jump longer than the grid.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise BadValue("repaint_grid needs decreasing times, (steps + 1,)")
    steps = len(times) - 1
    if not (1 <= jump <= steps and repeats >= 1):
        raise BadValue(f"needs 1 <= jump <= {steps} and repeats >= 1, got jump={jump}, repeats={repeats}")
    first = steps % jump
    index = list(range(first + 1))
    for start in range(first, steps, jump):
        down = list(range(start + 1, start + jump + 1))
        up = list(range(start + jump - 1, start - 1, -1))
        index += down + (up + down) * (repeats - 1)
    return times[index]
