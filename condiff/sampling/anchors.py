"""Hooks that hold a trajectory to what was inverted: the path below a time, the noise near a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from condiff.errors import BadValue, Incompatible
from condiff.process.algebra import scale
from condiff.process.prediction import Prediction
from condiff.sampling.inversion import Inversion
from condiff.sampling.loop import Hook, Run, Step


@dataclass(frozen=True, eq=False)
class TowardsReference(Hook):
    """``noise - length (noise - reference) / |noise - reference|``, the norm being each sample's (Li 2025, DCI).

    A step of the given length down the distance to the reference, whatever the distance; its direction is taken as a
    constant. DCI takes the clean latent for the reference of the noise, at every step of the inversion: a bounded bias
    towards the image, not a condition of consistency. With an accurate solver it makes plain reconstruction worse.

    Args:
        reference: (B, ...), or (1, ...) for all.
        length: Euclidean, or root mean square with ``rms``: 1 on a latent of 4 x 64 x 64 is 0.0078 of it.
        rms: measure the length by the root mean square, which doesn't depend on the number of dimensions.

    Raises:
        BadValue: a negative length. Incompatible: a reference of another shape.
    """

    continuous: ClassVar[bool] = True

    reference: Tensor
    length: float = 1.0
    rms: bool = False

    def __post_init__(self) -> None:
        if not self.length >= 0.0:
            raise BadValue(f"length must be >= 0, got {self.length}")

    def prediction(self, prediction: Prediction, run: Run) -> Prediction:
        if self.length == 0.0:
            return prediction
        noise, kept = prediction.noise, self.reference
        if kept.shape[1:] != noise.shape[1:] or len(kept) not in (1, len(noise)):
            raise Incompatible(f"the reference is {tuple(kept.shape)}, the sampler's states {tuple(noise.shape)}")
        gap = (noise - kept.to(noise)).detach()
        norm = gap.double().flatten(1).norm(dim=1)
        size = self.length * gap[0].numel() ** 0.5 if self.rms else self.length
        factor = torch.where(norm > 0.0, size / torch.where(norm > 0.0, norm, 1.0), 0.0)
        return prediction.set("noise", noise - scale(factor, gap))


@dataclass(frozen=True, eq=False)
class KeepPath(Hook):
    """Where guidance changes nothing, and t is below a time, the state of an inversion's path at the step's end.

    What changes is where :class:`condiff.guidance.Proximal` left a difference above its threshold, and what lies within
    ``radius`` of that, in each channel (Han 2023). Without such guidance everything is kept, or with ``mask`` all but
    that.

    Args:
        path: an inversion along the same times.
        below: steps from t < below are held; 1.1 for all.
        radius: of the dilation, in pixels.
        mask: booleans that broadcast to the state, true where the sampler is free, instead of what guidance says.

    Raises:
        Incompatible: a trajectory along other times, or of another shape.
    """

    continuous: ClassVar[bool] = True

    path: Inversion
    below: float = 0.4
    radius: int = 1
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise BadValue(f"radius must be >= 0, got {self.radius}")

    def start(self, run: Run) -> None:
        times = [float(t) for t in self.path.times.flip(0)]
        here = [level.t for level in run.levels]
        if len(here) != len(times) or any(isinstance(t, Tensor) or abs(t - u) > 1e-9 for t, u in zip(here, times)):  # noqa: B905
            raise Incompatible(
                f"the inversion has {len(times)} times from {times[0]:g} to {times[-1]:g}, the sampler {len(here)}: "
                "sample with grid=found.times.flip(0)"
            )

    def after(self, step: Step, run: Run) -> Tensor:
        if not step.t.t < self.below:
            return step.x_s
        kept = self.path.path[-2 - step.index]
        if kept.shape[1:] != step.x_s.shape[1:] or len(kept) not in (1, len(step.x_s)):
            raise Incompatible(f"the inversion's states are {tuple(kept.shape)}, the sampler's {tuple(step.x_s.shape)}")
        return torch.where(self._free(step.prediction), step.x_s, kept.to(step.x_s))

    def _free(self, said: Any) -> Tensor:
        if self.mask is not None:
            return self.mask.to(said.x_t.device)
        if "difference" not in said.aux:
            return torch.zeros((), dtype=torch.bool, device=said.x_t.device)
        left, q = said.aux["difference"], said.aux["threshold"]
        return dilated(left.abs() > q.reshape(-1, *(1,) * (left.ndim - 1)), self.radius)


def dilated(mask: Tensor, radius: int) -> Tensor:
    """A mask (B, C, ...) with all that lies within a square of ``2 radius + 1`` about its true entries."""
    for axis in range(2, mask.ndim) if radius else ():
        rows = mask.movedim(axis, -1)
        flat = rows.reshape(-1, 1, rows.shape[-1]).float()
        mask = max_pool1d(flat, 2 * radius + 1, 1, radius).reshape(rows.shape).movedim(-1, axis) > 0.5
    return mask
