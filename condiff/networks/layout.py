"""Layouts: where the channels of a sample are, and how it is cut into patches.

Networks work channel-first, ``(B, C, *spatial)``. Samples come as

=========  ==================  =============
layout     sample              spatial axes
=========  ==================  =============
image      ``(C, H, W)``       ``H, W``
volume     ``(C, D, H, W)``    ``D, H, W``
video      ``(F, C, H, W)``    ``F, H, W``
series     ``(L, C)``          ``L``
signal     ``(C, L)``          ``L``
vector     ``(D,)``            none
=========  ==================  =============
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, unknown

_NDIM = {"image": 3, "volume": 4, "video": 4, "series": 2, "signal": 2, "vector": 1}
_CHANNEL = {"image": 0, "volume": 0, "video": 1, "series": 1, "signal": 0, "vector": 0}
_DEFAULT = {1: "vector", 2: "series", 3: "image", 4: "volume"}


@dataclass(frozen=True)
class Layout:
    """The named layout of a sample of the given shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def channel_axis(self) -> int:
        """Position of the channels in a sample."""
        return _CHANNEL[self.name]

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the other axes, in order."""
        return self.shape[: self.channel_axis] + self.shape[self.channel_axis + 1 :]

    def check(self, x: Tensor, *, sizes: bool = False) -> None:
        """Refuse a batch whose number of dimensions or channels differ (with ``sizes``: any size)."""
        wrong = x.ndim != len(self.shape) + 1 or x.shape[1 + self.channel_axis] != self.channels
        if wrong or (sizes and x.shape[1:] != self.shape):
            raise BadValue(f"a batch of shape {tuple(x.shape)} came to a network of {self.name} samples {self.shape}")

    def channel_first(self, x: Tensor) -> Tensor:
        """``(B, *sample)`` with any number of channels -> ``(B, C, *spatial)``, a view.

        A video's entry without frames, ``(B, C, H, W)``, holds for every frame.
        """
        if self.name == "video" and x.ndim == 4:
            return x.unsqueeze(2).expand(-1, -1, self.shape[0], -1, -1)
        if x.ndim != len(self.shape) + 1:
            raise BadValue(f"{tuple(x.shape)} is not aligned with {self.name} samples {self.shape}")
        return x.movedim(1 + self.channel_axis, 1)

    def restore(self, x: Tensor, copies: int = 1) -> Tensor:
        """``(B, copies * C, *spatial)`` -> the layout's own order, copies side by side in dimension 1."""
        if self.channel_axis == 0:
            return x
        parts = x.chunk(copies, dim=1)
        return torch.cat([p.movedim(1, 1 + self.channel_axis) for p in parts], dim=1) if copies > 1 else x.movedim(1, 2)


def layout_of(shape: Sequence[int], name: str | None = None) -> Layout:
    """The layout of samples of ``shape``; by the number of axes when unnamed (vector, series, image, volume).

    Raises:
        BadValue: an unknown name, a shape with other than the layout's number of axes, sizes below 1.
    """
    if any(n != int(n) for n in shape):
        raise BadType(f"a sample's shape holds integers, got {tuple(shape)}")
    shape = tuple(int(n) for n in shape)
    name = name or _DEFAULT.get(len(shape))
    if name not in _NDIM:
        raise unknown("layout", name, _NDIM)
    if len(shape) != _NDIM[name] or min(shape) < 1:
        raise BadValue(f"{name} samples have {_NDIM[name]} axes of at least 1, got shape {shape}")
    return Layout(name, shape)


def per_axis(value: int | Sequence[int], axes: int, what: str) -> tuple[int, ...]:
    """One positive integer per axis, from one for all or one each."""
    out: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if any(isinstance(n, bool) or not isinstance(n, int) for n in out):
        raise BadType(f"{what} must be a positive integer or one for each of {axes} axes, got {value!r}")
    if len(out) != axes or min(out, default=1) < 1:
        raise BadValue(f"{what} must be a positive integer or one for each of {axes} axes, got {value}")
    return out


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """``(B, C, *spatial)`` -> ``(B, N, C prod(patch))``, row-major over the grid of patches."""
    axes = len(patch)
    for i, p in enumerate(patch):
        x = x.unflatten(2 + 2 * i, (-1, p))
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return x.permute(order).flatten(1 + axes).flatten(1, axes)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """The inverse of :func:`patchify`, for a grid of ``grid`` patches."""
    axes = len(patch)
    x = tokens.unflatten(2, (tokens.shape[2] // math.prod(patch), *patch)).unflatten(1, tuple(grid))
    order = [0, 1 + axes]
    for i in range(axes):
        order += [1 + i, 2 + axes + i]
    x = x.permute(order)
    return x.reshape(*x.shape[:2], *(n * p for n, p in zip(grid, patch, strict=True)))
