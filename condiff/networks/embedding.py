"""Embeddings of times and positions.

Times may be of any shape, ``(B,)`` or ``(B, F)``; positions are real-valued coordinates ``(..., axes)``, so that a
grid can be stretched, shifted or sampled off its nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.errors import BadValue


def frequencies(n: int, period: float = 10000.0, device: torch.device | None = None) -> Tensor:
    """``period^(-i / n)`` for i = 0 ... n - 1 (Vaswani 2017)."""
    return torch.exp(torch.arange(n, dtype=torch.float32, device=device) * (-math.log(period) / n))


class TimeEmbedding(nn.Module):
    """``W2 silu(W1 [cos(t w), sin(t w)])``: times of any shape -> ``(*shape, width)``.

    Args:
        width: of the result.
        features: number of cosines and sines (even).
        scale: times are multiplied by it first; 1000 puts [0, 1] on the customary range.
        hidden: width in between, ``width`` when None.
    """

    freqs: Tensor

    def __init__(self, width: int, features: int = 256, scale: float = 1000.0, hidden: int | None = None) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise BadValue(f"time features come in pairs, got {features}")
        hidden = hidden or width
        self.register_buffer("freqs", frequencies(features // 2) * scale, persistent=False)
        self.fc1, self.fc2 = nn.Linear(features, hidden), nn.Linear(hidden, width)

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[..., None] * self.freqs.float()
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(features)))


def grid_positions(sizes: Sequence[int]) -> Tensor:
    """Integer coordinates of a row-major grid: ``(prod(sizes), axes)``."""
    axes = [torch.arange(n, dtype=torch.float32) for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _share(total: int, axes: int) -> list[int]:
    """``total`` pairs shared among the axes, the first ones getting the remainder."""
    return [total // axes + (i < total % axes) for i in range(axes)]


def _angles(positions: Tensor, pairs: int, period: float) -> Tensor:
    """``(..., axes)`` coordinates -> ``(..., pairs)`` angles, the pairs shared among the axes."""
    axes = positions.shape[-1]
    if pairs < axes:
        raise BadValue(f"{2 * pairs} features can't hold positions on {axes} axes: two for each are the least")
    parts = [
        positions[..., i, None].float() * frequencies(n, period, positions.device)
        for i, n in enumerate(_share(pairs, axes))
    ]
    return torch.cat(parts, dim=-1)


def sincos(positions: Tensor, width: int, period: float = 10000.0) -> Tensor:
    """Fixed sine-cosine embedding of coordinates: ``(..., axes)`` -> ``(..., width)``; an odd last feature is 0."""
    angles = _angles(positions, width // 2, period)
    out = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return F.pad(out, (0, width % 2)) if width % 2 else out


def rotary(positions: Tensor, head_width: int, period: float = 10000.0) -> Tensor:
    """Rotary factors of coordinates: ``(..., N, axes)`` -> ``(2, ..., N, 1, head_width / 2)``, cosines and sines.

    Each axis turns its own share of the pairs of features (Su 2021), so that attention scores depend on
    differences of coordinates only.
    """
    if head_width % 2:
        raise BadValue(f"rotary positions need an even head width, got {head_width}")
    angles = _angles(positions, head_width // 2, period)[..., None, :]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Turn the pairs ``(x_i, x_{i + d/2})`` of ``x (..., N, heads, d)`` by the angles of ``factors``."""
    cos, sin = factors.to(x.dtype).unbind(0)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
