"""The blocks of a UNet in one, two or three dimensions: residual, attention, down- and upsampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.errors import BadValue
from condiff.networks.attention import Attention
from condiff.networks.base import zeroed
from condiff.networks.norm import GroupNorm

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def over_space(factors: Tensor, axes: int) -> Tensor:
    """Factors (B, G, C) of one time, or one per frame, as (B, C, G or 1, 1, ...)."""
    return factors.transpose(1, 2).reshape(factors.shape[0], factors.shape[2], -1, *(1,) * (axes - 1))


class ResBlock(nn.Module):
    """``shortcut(x) + conv(silu(film(norm(conv(silu(norm(x)))), c)))``; the last convolution is 0 at the start.

    ``film="scale_shift"`` is ``(1 + scale(c)) h + shift(c)`` after the norm, ``"add"`` adds ``shift(c)`` before it.
    """

    def __init__(self, axes: int, inner: int, outer: int, emb: int, groups: int, film: str) -> None:
        super().__init__()
        conv = CONV[axes]
        self.axes, self.film = axes, film
        self.norm1, self.conv1 = GroupNorm(inner, groups), conv(inner, outer, 3, padding=1)
        self.modulation = nn.Linear(emb, outer * (2 if film == "scale_shift" else 1))
        self.norm2, self.conv2 = GroupNorm(outer, groups), zeroed(conv(outer, outer, 3, padding=1))
        self.shortcut = conv(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        told = over_space(self.modulation(c), self.axes)
        if self.film == "scale_shift":
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1.0 + scale)
        else:
            h = self.norm2(h + told)
        return self.shortcut(x) + self.conv2(F.silu(h))


class AttentionBlock(nn.Module):
    """Self-attention over all positions, then cross-attention to condition tokens where there are any."""

    def __init__(self, channels: int, heads: int, groups: int, context: int | None, backend: str) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.attn = Attention(channels, heads, backend=backend)
        zeroed(self.attn.out)
        self.cross = None
        if context is not None:
            self.norm_cross = nn.LayerNorm(channels)
            self.cross = Attention(channels, heads, context=context, backend=backend)
            zeroed(self.cross.out)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        shape = x.shape
        tokens = self.attn(self.norm(x).flatten(2).transpose(1, 2)) + x.flatten(2).transpose(1, 2)
        if self.cross is not None:
            tokens = tokens + self.cross(self.norm_cross(tokens), context, mask=mask)
        return tokens.transpose(1, 2).view(shape)


class Layer(nn.Module):
    """A residual block and, at levels that ask for it, attention.

    Args:
        join: brings the encoder's activation to the input's channels, to be added; None to put it beside the input.
        stores, takes: whether the UNet keeps its output for the decoder, gives it one that was kept.
    """

    def __init__(
        self,
        res: ResBlock,
        attention: AttentionBlock | None,
        join: nn.Module | None = None,
        *,
        stores: bool = False,
        takes: bool = False,
    ) -> None:
        super().__init__()
        self.res, self.attention, self.join, self.stores, self.takes = res, attention, join, stores, takes

    def forward(
        self, x: Tensor, c: Tensor, context: Tensor | None, mask: Tensor | None, skip: Tensor | None = None
    ) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1) if self.join is None else x + self.join(skip)
        x = self.res(x, c)
        return x if self.attention is None else self.attention(x, context, mask)


class Downsample(nn.Module):
    """A strided convolution: n -> ceil(n / stride) along each axis."""

    def __init__(self, channels: int, stride: Sequence[int], *, stores: bool) -> None:
        super().__init__()
        self.stores = stores
        padding = tuple((s + 1) // 2 for s in stride)
        kernel = tuple(2 * p + 1 for p in padding)
        self.conv = CONV[len(stride)](channels, channels, kernel, stride=tuple(stride), padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling and a convolution of size 3, cut to the size asked for.

    Both are one transposed convolution whose kernel is the convolution's, spread by a box of ``stride``:
    ``K_k = sum_j w_j [0 <= k + j - 2 < stride]``, ``(stride + 2) / (3 stride)`` of the multiplications per axis.
    """

    def __init__(self, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.conv = CONV[len(self.stride)](channels, channels, 3, padding=1)
        for axis, s in enumerate(self.stride):
            k, j = torch.arange(s + 2)[:, None], torch.arange(3)[None, :]
            spread = ((k + j - 2 >= 0) & (k + j - 2 < s)).float()
            self.register_buffer(f"spread{axis}", spread, persistent=False)

    def kernel(self) -> Tensor:
        """The transposed convolution's (in, out, *stride + 2)."""
        weight = self.conv.weight.transpose(0, 1)
        for axis in range(len(self.stride)):
            spread = getattr(self, f"spread{axis}").to(weight.dtype)
            weight = (weight.movedim(2 + axis, -1) @ spread.T).movedim(-1, 2 + axis)
        return weight

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = CONV_TRANSPOSE[len(self.stride)](x, self.kernel(), self.conv.bias, stride=self.stride, padding=1)
        for axis, n in enumerate(size):
            if x.shape[2 + axis] != n:
                x = x.narrow(2 + axis, 0, n)
        return x


def heads_of(channels: int, head_width: int) -> int:
    """Heads of ``head_width`` that fill the channels; one where there are fewer channels."""
    if channels > head_width and channels % head_width:
        raise BadValue(f"heads of width {head_width} don't fill a level of {channels} channels")
    return max(1, channels // head_width)
