"""The modules that embed conditions. Each takes an entry, and says what stands in for it where it is absent.

Rows are embedded independently of their neighbours, whatever an absent row's value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions.condition import Condition
from condiff.errors import BadValue
from condiff.process.algebra import readable

_INIT = 0.02  # standard deviation of fresh nulls


def _only(keep: Tensor | None, value: Tensor) -> Tensor:
    """The value with absent rows zeroed (whatever they hold, NaN included), so that no gradient comes from them."""
    if keep is None:
        return value
    keep = keep.reshape(-1, *(1,) * (value.ndim - 1))
    return torch.where(keep, value, torch.zeros((), dtype=value.dtype, device=value.device))


def _perturbed(x: Tensor, noise: Tensor | None) -> Tensor:
    if noise is None:
        return x
    if noise.shape != x.shape:
        raise BadValue(f"noise of shape {tuple(noise.shape)} can't be added to embeddings of shape {tuple(x.shape)}")
    return x + noise.to(x.dtype)


def _check_ids(value: Tensor, size: int, keep: Tensor | None, what: str) -> None:
    """Refuse ids outside [0, size). Where reading values would wait for a device or break a trace it is left out."""
    if not readable(value):
        return
    value = _only(keep, value)
    low, high = (int(m) for m in torch.aminmax(value)) if value.numel() else (0, 0)
    if low < 0 or high >= size:
        raise BadValue(f"{what} lie in 0 ... {size - 1}, got {low if low < 0 else high}")


class LabelEmbedding(nn.Module):
    """A table whose last row is the null."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)  # N(0, 1): tables that start near 0 learn classes far later

    def forward(self, entry: Condition | None, batch: int) -> Tensor:
        if entry is None:
            return self.table.weight[-1].expand(batch, -1)
        value, keep = entry.value, entry.keep
        _check_ids(value, self.classes, keep, "labels")
        if keep is not None:
            value = torch.where(keep, value, self.classes)
        return _perturbed(self.table(value), entry.noise)


class Fourier(nn.Module):
    """``[u, cos(2 pi f u), sin(2 pi f u)]`` of ``u = (value - low) / (high - low)``, f from 1/4 to 16 geometrically."""

    freqs: Tensor

    def __init__(self, low: float, high: float, features: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        cycles = torch.logspace(-2, 4, features, base=2.0)
        self.register_buffer("freqs", 2.0 * math.pi * cycles, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        u = (value.float() - self.low) / (self.high - self.low)
        angles = u[:, None] * self.freqs.float()
        return torch.cat([u[:, None], angles.cos(), angles.sin()], dim=-1)


class VectorEmbedding(nn.Module):
    """``W2 silu(W1 features)``, and a null vector."""

    def __init__(self, features: nn.Module, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.features, self.fc1, self.fc2 = features, nn.Linear(dim, width), nn.Linear(width, width)
        self.null = nn.Parameter(torch.randn(width) * _INIT)

    def forward(self, entry: Condition | None, batch: int) -> Tensor:
        if entry is None:
            return self.null.expand(batch, -1)
        value = _only(entry.keep, entry.value)
        if value.ndim == 2 and value.shape[1] != self.dim:
            raise BadValue(f"a vector of {self.dim} numbers was declared, got {value.shape[1]}")
        x = self.fc2(F.silu(self.fc1(self.features(value).to(self.fc1.weight.dtype))))
        x = x if entry.keep is None else torch.where(entry.keep[:, None], x, self.null.to(x.dtype))
        return _perturbed(x, entry.noise)


class TokenEmbedding(nn.Module):
    """Tokens to the network's width; an absent row attends to one null token."""

    def __init__(self, width: int, *, dim: int | None, vocab: int | None, length: int | None) -> None:
        super().__init__()
        self.dim, self.vocab, self.length = dim, vocab, length
        self.table = nn.Embedding(vocab, width) if vocab else None
        self.proj = nn.Linear(dim, width) if dim else None
        self.position = nn.Parameter(torch.randn(length, width) * _INIT) if length else None
        self.null = nn.Parameter(torch.randn(width) * _INIT)

    def check(self, value: Tensor) -> None:
        if self.length and value.shape[1] != self.length:
            raise BadValue(f"{self.length} tokens were declared, got {value.shape[1]}")
        if self.dim and (value.ndim != 3 or value.shape[2] != self.dim):
            raise BadValue(f"tokens of shape (B, L, {self.dim}) were declared, got {tuple(value.shape)}")
        if self.vocab and (value.ndim != 2 or value.dtype.is_floating_point):
            raise BadValue(f"token ids of shape (B, L) were declared, got {value.dtype} {tuple(value.shape)}")

    def forward(self, entry: Condition | None, batch: int) -> tuple[Tensor, Tensor | None]:
        if entry is None:
            return self.null.expand(batch, 1, -1), None
        self.check(entry.value)
        keep, mask = entry.keep, entry.mask
        value = _only(keep, entry.value)
        if mask is not None:
            value = torch.where(mask if value.ndim == 2 else mask[..., None], value, torch.zeros_like(value))
        x = self.embed(value)
        if keep is None:
            return _perturbed(x, entry.noise), mask
        x = _perturbed(torch.where(keep[:, None, None], x, self.null.to(x.dtype)), entry.noise)
        first = torch.arange(x.shape[1], device=x.device) == 0
        return x, torch.where(keep[:, None], True if mask is None else mask, first)

    def embed(self, value: Tensor) -> Tensor:
        if self.table is not None:
            _check_ids(value, self.table.num_embeddings, None, "token ids")
            x = self.table(value)
        else:
            assert self.proj is not None
            x = self.proj(value.to(self.proj.weight.dtype))
        return x if self.position is None else x + self.position


def _indicator(present: Tensor, like: Tensor) -> Tensor:
    """Flags (B,) or (B, n) as channels (B, n, *spatial)."""
    flags = present.reshape(present.shape[0], -1, *(1,) * (like.ndim - 2)).to(like.dtype)
    return flags.expand(-1, -1, *like.shape[2:])


def _aligned(value: Tensor, channels: int, like: Tensor, what: str) -> Tensor:
    wanted = (like.shape[0], channels, *like.shape[2:])
    if value.shape != wanted:
        raise BadValue(f"the {what} beside this state has shape {wanted} (channels first), got {tuple(value.shape)}")
    return value.to(like.dtype)


class MapChannels(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, entry: Condition | None, like: Tensor, channel_first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if entry is None:
            return [like.new_zeros(like.shape[0], self.channels + 1, *like.shape[2:])]
        value = _aligned(channel_first(entry.value), self.channels, like, entry.kind)
        return [_only(entry.keep, value), _indicator(entry.kept(), like)]


class ObservedChannels(MapChannels):
    def forward(self, entry: Condition | None, like: Tensor, channel_first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if entry is None:
            return [like.new_zeros(like.shape[0], 2 * self.channels, *like.shape[2:])]
        value = _aligned(channel_first(entry.value), self.channels, like, "observation")
        mask = torch.ones_like(value, dtype=torch.bool)
        if entry.mask is not None:
            mask = channel_first(entry.mask.bool().expand(entry.value.shape))
        if entry.keep is not None:
            mask = mask & entry.keep.reshape(-1, *(1,) * (value.ndim - 1))
        return [torch.where(mask, value, torch.zeros_like(value)), mask.to(like.dtype)]


class FrameChannels(nn.Module):
    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.frames, self.channels = frames, channels

    def forward(self, entry: Condition | None, like: Tensor, channel_first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if entry is None:
            return [like.new_zeros(like.shape[0], self.frames * (self.channels + 1), *like.shape[2:])]
        value = entry.value
        space = like.shape[like.ndim - value.ndim + 3 :] if value.ndim == 5 else like.shape[2:]
        if value.shape[1:] != (self.frames, self.channels, *space):
            raise BadValue(
                f"{self.frames} frames of {(self.channels, *space)} were declared, got {tuple(value.shape[1:])}"
            )
        there = entry.kept()[:, None].expand(-1, self.frames)
        there = there if entry.mask is None else there & entry.mask
        value = torch.where(there.reshape(*there.shape, *(1,) * (value.ndim - 2)), value, torch.zeros_like(value))
        value = value.flatten(1, 2).to(like.dtype)
        value = value.reshape(*value.shape[:2], *(1,) * (like.ndim - value.ndim), *value.shape[2:])
        return [value.expand(-1, -1, *like.shape[2:]), _indicator(there, like)]


class LevelEmbedding(nn.Module):
    """The noise level of a corrupted condition, by Fourier features of log(1 + level); level 0 when none is told.

    Of a condition that is dropped or not given at all, nothing: (B, width) zeros.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features, self.proj = Fourier(0.0, 5.0, 16), nn.Linear(33, width)

    def forward(self, entry: Condition | None, batch: int) -> Tensor:
        weight = self.proj.weight
        if entry is None:
            return weight.new_zeros(batch, len(weight))
        level = weight.new_zeros(batch) if entry.level is None else entry.level
        x = self.proj(self.features(torch.log1p(level.float())).to(weight.dtype))
        return x if entry.keep is None else _only(entry.keep, x)
