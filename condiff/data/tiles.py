"""Tiles: pictures of any size through a model of one size, cut into windows that overlap and joined again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue
from condiff.typing import Float


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Windows of ``size`` that cover a picture, evenly spread, neighbours sharing at least ``overlap`` pixels.

    A picture smaller than a window is padded at the bottom and the right, by its mirror image without the edge, and cut
    back when it is joined. Where windows overlap, their weights fall linearly to their borders and sum to 1, so that
    ``join(cut(x)) = x``.

    Args:
        size: (height, width) of a window.
        overlap: pixels, less than half the size.

    Raises:
        BadType, BadValue: sizes that aren't positive integers, an overlap that is too large.
    """

    size: tuple[int, int]
    overlap: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        if any(isinstance(n, bool) or not isinstance(n, int) for n in (*self.size, self.overlap)):
            raise BadType(f"size and overlap are integers, got {self.size} and {self.overlap!r}")
        if len(self.size) != 2 or min(self.size) < 1 or not 0 <= 2 * self.overlap < max(2, min(self.size)):
            raise BadValue(f"size is (height, width) > 0 and 0 <= overlap < size / 2, got {self.size}, {self.overlap}")

    def starts(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Top and left of each window on a padded picture of this (height, width)."""
        rows, columns = (self._along(n, size) for n, size in zip(shape, self.size, strict=True))
        return [(top, left) for top in rows for left in columns]

    def _along(self, n: int, size: int) -> list[int]:
        if n <= size:
            return [0]
        count = math.ceil((n - self.overlap) / (size - self.overlap))
        return [round(i * (n - size) / (count - 1)) for i in range(count)]

    def pad(self, x: Float[Tensor, "channels height width"]) -> Tensor:
        """The picture, at least as large as a window."""
        for axis, size in ((1, self.size[0]), (2, self.size[1])):
            x = x.index_select(axis, _mirrored(x.shape[axis], max(size, x.shape[axis])).to(x.device))
        return x

    def cut(self, x: Float[Tensor, "channels height width"]) -> Tensor:
        """(C, H, W) -> windows (N, C, *size)."""
        x, (h, w) = self.pad(x), self.size
        return torch.stack([x[:, top : top + h, left : left + w] for top, left in self.starts(x.shape[1:])])

    def join(self, tiles: Float[Tensor, "n channels h w"], shape: tuple[int, ...]) -> Tensor:
        """Windows of a picture of this (height, width) -> (C, *shape).

        Raises:
            BadValue: another number or size of windows than the picture has.
        """
        height, width = (max(n, size) for n, size in zip(shape, self.size, strict=True))
        starts, (h, w) = self.starts((height, width)), self.size
        if len(tiles) != len(starts) or tuple(tiles.shape[2:]) != self.size:
            raise BadValue(f"{len(starts)} windows of {self.size} make a picture of {shape}, got {tuple(tiles.shape)}")
        weight = (self._ramp(h)[:, None] * self._ramp(w)).to(tiles)
        out, total = tiles.new_zeros(tiles.shape[1], height, width), tiles.new_zeros(height, width)
        for tile, (top, left) in zip(tiles, starts, strict=True):
            out[:, top : top + h, left : left + w] += weight * tile
            total[top : top + h, left : left + w] += weight
        return (out / total)[:, : shape[0], : shape[1]]

    def _ramp(self, n: int) -> Tensor:
        """Weights along a window: from its border up over the overlap."""
        away = torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1))
        return away.clamp(max=self.overlap + 1).double()


def _mirrored(n: int, wanted: int) -> Tensor:
    """Indices 0 ... n - 1 and back again, ``wanted`` of them."""
    if n == 1:
        return torch.zeros(wanted, dtype=torch.long)
    i = torch.arange(wanted) % (2 * n - 2)
    return torch.minimum(i, 2 * n - 2 - i)
