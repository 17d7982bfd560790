"""The orthonormal Haar wavelet transform as a codec, in one, two or three dimensions: exact, and without weights.

On every spatial axis pairs become a mean and a difference::

    low = (a + b) / sqrt(2)        high = (a - b) / sqrt(2)

so a volume of D x H x W becomes 8 bands of half the sides, LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH: the first letter
belongs to the first spatial axis, the last to the last (the order of Friedrich 2024, WDM, arXiv 2402.19043, and cWDM,
arXiv 2411.17203). The map is orthonormal: it keeps norms, and white noise stays white noise. The low band alone is
divided by ``low``, 3 in those papers, so that its range is like that of the others; at ``low=1`` diffusion in the bands
and diffusion of the samples are the same process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from condiff.codecs.base import Codec
from condiff.errors import BadValue
from condiff.fields import checked
from condiff.networks.base import configured

HALF = math.sqrt(0.5)


@dataclass(frozen=True, kw_only=True)
@checked
class HaarConfig:
    """A :class:`Haar` codec.

    Args:
        axes: spatial axes of the samples, 1 to 3.
        levels: how often the sides are halved; every band is transformed again, so that a level multiplies the
            channels by 2^axes.
        low: what the low band is divided by, at each level.
    """

    axes: int = 3
    levels: int = 1
    low: float = 3.0

    def __post_init__(self) -> None:
        if self.axes not in (1, 2, 3):
            raise BadValue(f"the Haar transform takes 1, 2 or 3 spatial axes, got {self.axes}")
        if self.levels < 1:
            raise BadValue(f"levels must be at least 1, got {self.levels}")
        if not (math.isfinite(self.low) and self.low > 0.0):
            raise BadValue(f"low, what the low band is divided by, must be > 0, got {self.low}")

    def build(self) -> Haar:
        return Haar(self)


class Haar(Codec):
    """``Haar(axes=3)``: samples (C, *spatial) of even sides -> (C 2^axes, *halves); see :class:`HaarConfig`.

    Any number of channels; the bands of one channel lie next to each other. ``scale`` and ``shift`` have a number per
    band.

    Raises:
        BadValue: other numbers of axes, sides that can't be halved.

    Example:
        >>> haar = Haar(axes=3)
        >>> z = haar.encode(torch.ones(1, 1, 8, 12, 16))  # (1, 8, 4, 6, 8); 2 sqrt(2) / 3 in the low band, else 0
        >>> x = haar.decode(z)
    """

    def __init__(self, config: HaarConfig | None = None, **fields: Any) -> None:
        c = configured(HaarConfig, config, fields)
        self.bands = 2 ** (c.axes * c.levels)
        super().__init__(self.bands)
        self.config, self.factor = c, 2**c.levels
        scale = torch.ones(1)
        for _ in range(c.levels):
            one = torch.ones(2**c.axes)
            one[0] = c.low
            scale = (scale[:, None] * one).flatten()
        self.scale.copy_(scale)

    @property
    def names(self) -> tuple[str, ...]:
        """What the bands are called, in order: ``("LLL", "LLH", ...)``; levels are separated by dots."""
        one = ["".join(letters) for letters in product("LH", repeat=self.config.axes)]
        return tuple(".".join(parts) for parts in product(one, repeat=self.config.levels))

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        shape = tuple(shape)
        if len(shape) != self.config.axes + 1:
            letters = ", ".join("DHW"[-self.config.axes :])
            raise BadValue(f"this Haar transform takes samples (C, {letters}), got shape {shape}")
        if any(n % self.factor or n == 0 for n in shape[1:]):
            raise BadValue(f"sides {shape[1:]} must be multiples of {self.factor}: pad or crop the samples")
        return (shape[0] * self.bands, *(n // self.factor for n in shape[1:]))

    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        for _ in range(self.config.levels):
            x = analysis(x, self.config.axes)
        return x

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        if raw.ndim != self.config.axes + 2 or raw.shape[1] % self.bands:
            raise BadValue(
                f"latents of this Haar transform are (B, C * {self.bands}, ...) with {self.config.axes} spatial axes, "
                f"got shape {tuple(raw.shape)}"
            )
        for _ in range(self.config.levels):
            raw = synthesis(raw, self.config.axes)
        return raw

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of every band, repeated over the channels of the samples."""
        if z.shape[1] % self.bands:
            raise BadValue(f"latents of this Haar transform have a multiple of {self.bands} channels, got {z.shape[1]}")
        shape = (-1, *(1,) * (z.ndim - 2))
        count = z.shape[1] // self.bands
        return tuple(v.to(z.dtype).repeat(count).reshape(shape) for v in (self.shift, self.scale))  # type: ignore


def analysis(x: Tensor, axes: int) -> Tensor:
    """One level: (B, C, *spatial) -> (B, C 2^axes, *halves), the bands of a channel next to each other."""
    x = x.unsqueeze(2)
    for axis in range(axes):  # the letter of a later axis varies faster
        pairs = x.unflatten(3 + axis, (-1, 2))
        a, b = pairs.unbind(4 + axis)
        x = torch.stack([(a + b) * HALF, (a - b) * HALF], dim=3).flatten(2, 3)
    return x.flatten(1, 2)


def synthesis(z: Tensor, axes: int) -> Tensor:
    """The inverse, and transpose, of :func:`analysis`."""
    z = z.unflatten(1, (-1, 2**axes))
    for axis in reversed(range(axes)):
        low, high = z.unflatten(2, (-1, 2)).unbind(3)
        z = torch.stack([(low + high) * HALF, (low - high) * HALF], dim=4 + axis).flatten(3 + axis, 4 + axis)
    return z.squeeze(2)
