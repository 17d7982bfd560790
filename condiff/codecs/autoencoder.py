"""A convolutional autoencoder in one, two or three dimensions, whose decoder may look at reference samples.

The encoder halves each spatial axis from level to level and ends in a few channels. Without references the decoder is
its mirror. With N references, such as the frames before and after the one that is encoded (Danier 2024, LDMVFI;
Lyu 2024, consecutive Brownian bridge), the encoder's activations of each reference are put beside the decoder's at
every level, and the last layer blends the references and corrects them::

    x = sum_n m_n ref_n + r,        (m_1, ..., m_N) = softmax over n, at every position

For pictures a flow may be given, ``flow(ref) -> (B, N, 2, H, W)``: reference n at p + flow_n(p) is what is seen at p.
References and their activations are then warped before they are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.codecs.base import Codec
from condiff.codecs.warp import warp
from condiff.errors import BadValue
from condiff.fields import checked
from condiff.networks.base import configured, freeze, zeroed
from condiff.networks.norm import GroupNorm
from condiff.networks.unet_blocks import CONV

Flow = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
@checked
class AutoencoderConfig:
    """An :class:`Autoencoder`.

    Args:
        shape: of one sample, channels first: (C, L), (C, H, W) or (C, D, H, W).
        channels: of the latent.
        width: channels of the first level; ``multipliers``: of each level over it. L levels have factor 2^(L - 1).
        layers: residual blocks per level.
        references: how many references the decoder sees; 0 for none.
        groups: of group normalisation, at most.
    """

    shape: tuple[int, ...]
    channels: int = 4
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    layers: int = 1
    references: int = 0
    groups: int = 8

    def __post_init__(self) -> None:
        freeze(self, "shape", "multipliers")
        if len(self.shape) not in (2, 3, 4):
            raise BadValue(f"an autoencoder takes samples (C, L), (C, H, W) or (C, D, H, W), got {self.shape}")
        if not self.multipliers or min(self.channels, self.width, self.layers, self.groups, *self.multipliers) < 1:
            raise BadValue(f"channels, width, multipliers, layers and groups must be at least 1, got {self}")
        if self.references < 0:
            raise BadValue(f"references must be >= 0, got {self.references}")

    def build(self) -> Autoencoder:
        return Autoencoder(self)


class Side(NamedTuple):
    """What the decoder takes from references: for each the (warped) sample and the (warped) activations by level."""

    samples: list[Tensor]
    features: list[list[Tensor]]


class Block(nn.Module):
    """``shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))``; the last convolution is 0 at the start."""

    def __init__(self, axes: int, inner: int, outer: int, groups: int) -> None:
        super().__init__()
        conv = CONV[axes]
        self.norm1, self.conv1 = GroupNorm(inner, groups), conv(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = GroupNorm(outer, groups), zeroed(conv(outer, outer, 3, padding=1))
        self.shortcut = conv(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Encoder(nn.Module):
    """x (B, C, *spatial) -> its activations at every level, and the latent."""

    def __init__(self, config: AutoencoderConfig, axes: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.input = CONV[axes](config.shape[0], widths[0], 3, padding=1)
        self.levels, self.down = nn.ModuleList(), nn.ModuleList()
        for above, width in zip([widths[0], *widths], widths, strict=False):
            blocks = [Block(axes, above if i == 0 else width, width, config.groups) for i in range(config.layers)]
            self.levels.append(nn.Sequential(*blocks))
        for width in widths[:-1]:
            self.down.append(CONV[axes](width, width, 3, stride=2, padding=1))
        self.norm = GroupNorm(widths[-1], config.groups)
        self.output = CONV[axes](widths[-1], config.channels, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations from the finest level to the coarsest."""
        h, found = self.input(x), []
        for level, blocks in enumerate(self.levels):
            h = blocks(h if level == 0 else self.down[level - 1](h))
            found.append(h)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.silu(self.norm(self.features(x)[-1])))


class Decoder(nn.Module):
    """The latent, beside the references' activations -> the sample."""

    def __init__(self, config: AutoencoderConfig, axes: int) -> None:
        super().__init__()
        conv, seen = CONV[axes], config.references
        widths = [config.width * m for m in reversed(config.multipliers)]
        self.input = conv(config.channels, widths[0], 3, padding=1)
        self.levels, self.up = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            blocks = [
                Block(axes, width * (1 + seen if i == 0 else 1), width, config.groups) for i in range(config.layers)
            ]
            self.levels.append(nn.Sequential(*blocks))
        for width, below in itertools.pairwise(widths):
            self.up.append(conv(width, below, 3, padding=1))
        self.norm = GroupNorm(widths[-1], config.groups)
        last = conv(widths[-1], config.shape[0] + seen, 3, padding=1)
        self.output = zeroed(last) if seen else last
        self.references = seen

    def forward(self, raw: Tensor, side: Side | None) -> Tensor:
        h = self.input(raw)
        for i, blocks in enumerate(self.levels):
            if i > 0:
                h = self.up[i - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            others = [] if side is None else [features[-1 - i] for features in side.features]
            h = blocks(torch.cat([h, *others], dim=1))
        out = self.output(F.silu(self.norm(h)))
        return out if side is None else self._blend(out, side.samples)

    def _blend(self, out: Tensor, samples: list[Tensor]) -> Tensor:
        masks, residual = out[:, : self.references].softmax(dim=1), out[:, self.references :]
        return residual + sum(masks[:, n : n + 1] * sample for n, sample in enumerate(samples))


class Autoencoder(Codec):
    """``Autoencoder(shape=(3, 64, 64), references=2)``: see :class:`AutoencoderConfig`.

    Other sizes than the configured one are taken, as long as the factor divides them (see
    :func:`~condiff.codecs.pad_to_multiple`). References are (B, N, C, *spatial).

    Args:
        flow: ``flow(ref) -> (B, N, 2, H, W)``, in pixels of its own grid; for pictures with references. A module is
            stored with the weights.

    Raises:
        BadValue: samples or references of another shape than it was made for.
    """

    def __init__(self, config: AutoencoderConfig | None = None, *, flow: Flow | None = None, **fields: Any) -> None:
        c = configured(AutoencoderConfig, config, fields)
        super().__init__(c.channels)
        self.config, self.axes = c, len(c.shape) - 1
        self.factor = 2 ** (len(c.multipliers) - 1)
        if flow is not None and (self.axes != 2 or not c.references):
            raise BadValue(f"a flow warps the references of pictures; got shape {c.shape}, {c.references} references")
        self.needs_ref = "decode" if c.references else None
        self.encoder, self.decoder, self.flow = Encoder(c, self.axes), Decoder(c, self.axes), flow

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        shape = tuple(shape)
        if len(shape) != len(self.config.shape) or shape[0] != self.config.shape[0]:
            raise BadValue(f"samples of shape {shape} came to an autoencoder of samples {self.config.shape}")
        if any(n % self.factor for n in shape[1:]):
            raise BadValue(f"sides {shape[1:]} must be multiples of {self.factor}: crop them, or use pad_to_multiple")
        return (self.config.channels, *(n // self.factor for n in shape[1:]))

    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        return self.encoder(x)

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        if side is not None and tuple(side.features[0][-1].shape[2:]) != tuple(raw.shape[2:]):
            raise BadValue(
                f"a latent of sides {tuple(raw.shape[2:])} doesn't fit references of "
                f"{tuple(side.samples[0].shape[2:])}, which have latents of {tuple(side.features[0][-1].shape[2:])}"
            )
        return self.decoder(raw, side)

    def side(self, ref: Any) -> Side | None:
        """Samples and activations of the references (B, N, C, *spatial), warped where there is a flow."""
        if not self.config.references:
            return None
        if ref.ndim != self.axes + 3 or ref.shape[1] != self.config.references:
            wanted = ("B", self.config.references, self.config.shape[0], *("HWD"[: self.axes]))
            raise BadValue(f"references are {wanted}, got shape {tuple(ref.shape)}")
        self.latent_shape(ref.shape[2:])
        samples = list(ref.unbind(1))
        features = [self.encoder.features(sample) for sample in samples]
        if self.flow is None:
            return Side(samples, features)
        flows = self.flow(ref)
        if flows.ndim != 5 or flows.shape[:3] != (*ref.shape[:2], 2):
            raise BadValue(f"a flow of references {tuple(ref.shape)} is (B, N, 2, H, W), got {tuple(flows.shape)}")
        each = list(zip(samples, features, flows.unbind(1), strict=True))
        return Side([warp(x, f) for x, _, f in each], [[warp(h, f) for h in levels] for _, levels, f in each])
