"""UNet (Ho 2020, arXiv 2006.11239; Dhariwal 2021, arXiv 2105.05233) in one, two or three dimensions.

Levels of residual blocks, each level coarser by its own stride per axis; the decoder sees the encoder's activations
beside its own, added to them, or not at all. Time and vector conditions scale and shift each block's
activations; token conditions are attended to where a level has attention; maps are put beside the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions import ConditionBank, Conditions
from condiff.errors import BadValue, unknown
from condiff.fields import checked
from condiff.networks.attention import BACKENDS, set_attention
from condiff.networks.attention_control import AttentionControl, control_attentions
from condiff.networks.base import Network, configured, freeze, split_variance, zeroed
from condiff.networks.embedding import TimeEmbedding
from condiff.networks.layout import layout_of, per_axis
from condiff.networks.norm import GroupNorm
from condiff.networks.unet_blocks import (
    CONV,
    AttentionBlock,
    Downsample,
    Layer,
    ResBlock,
    Upsample,
    heads_of,
)

SKIPS = ("concat", "add", "none")
FILMS = ("scale_shift", "add")
_FORMAT = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True, kw_only=True)
@checked
class UNetConfig:
    """A :class:`UNet`.

    Args:
        shape: of one sample.
        layout: image, volume, video, series or signal; by the number of axes when None (4 axes: volume).
        width: channels of the first level.
        multipliers: channels of each level over ``width``.
        layers: residual blocks per level (one more in the decoder).
        strides: from each level to the next: one number, or one per transition, each a number or one per axis.
        attention_levels: levels with attention, counted from 0; ``middle_attention``: also in between.
        head_width: of attention.
        skip: how the decoder sees the encoder: ``"concat"``, ``"add"`` or ``"none"``.
        film: ``"scale_shift"`` after the norm, or ``"add"``.
        groups: of group normalisation (at most; the greatest number that divides the channels too).
        attention: ``"sdpa"``, or ``"plain"`` for forward-mode derivatives, double backward and vmap.
        channels_last: keep activations channels-last, which is faster on most hardware.
        outputs: targets predicted side by side in dimension 1.
        learned_variance: as many more channels, returned as aux ``{"variance": ...}``.
        conditions: name -> spec.
        time_scale: what times are multiplied by before their sine-cosine embedding.
        checkpoint: recompute activations in the backward pass.
    """

    shape: tuple[int, ...]
    layout: str | None = None
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    layers: int = 2
    strides: int | tuple[int | tuple[int, ...], ...] = 2
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    head_width: int = 32
    skip: str = "concat"
    film: str = "scale_shift"
    groups: int = 32
    attention: str = "sdpa"
    channels_last: bool = True
    outputs: int = 1
    learned_variance: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    time_scale: float = 1000.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        freeze(self, "shape", "multipliers", "strides", "attention_levels")
        for name, known in (("skip", SKIPS), ("film", FILMS), ("attention", BACKENDS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if not self.multipliers or min(self.width, self.layers, self.outputs, *self.multipliers) < 1 or self.width % 2:
            raise BadValue(f"width must be even, and width, multipliers, layers and outputs at least 1, got {self}")
        if min(self.groups, self.head_width) < 1:
            raise BadValue(f"groups and head_width must be at least 1, got {self.groups} and {self.head_width}")
        if any(not 0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise BadValue(f"levels are 0 ... {len(self.multipliers) - 1}, got attention at {self.attention_levels}")
        if layout_of(self.shape, self.layout).name == "vector":
            raise BadValue(f"a UNet needs samples with at least one spatial axis, got shape {self.shape}; use an MLP")

    def build(self) -> UNet:
        return UNet(self)


@dataclass
class UNetHidden:
    """Between two layers.

    Attributes:
        x: activations (B, C, *spatial).
        c: silu of embedded time and vector conditions, (B, G, emb) with G = 1 or frames.
        context, context_mask: tokens of the conditions (B, M, emb) and which of them are there.
        skips: the encoder's activations that the decoder is still to see.
        sizes: spatial sizes that the decoder is still to come back to.
    """

    x: Tensor
    c: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    skips: list[Tensor]
    sizes: list[tuple[int, ...]]


class UNet(Network):
    """``UNet(shape=(3, 32, 32), width=64, multipliers=(1, 2, 2))``: see :class:`UNetConfig`.

    ``net(x, time, cond)``: x (B, *shape); time (B,), or per frame (B, F) of a video or position of a series whose
    first axis is never strided -> x's shape, times ``outputs`` in dimension 1; with ``learned_variance`` a pair of it
    and aux. Other spatial sizes than the configured one are accepted, odd ones too: a level of n becomes
    ceil(n / stride), and the decoder comes back to n.
    """

    any_size: ClassVar[bool] = True

    def __init__(self, config: UNetConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = c = configured(UNetConfig, config, fields)
        self.layout = layout_of(c.shape, c.layout)
        self.axes, self.emb = len(self.layout.spatial), 4 * c.width
        self.strides = self._strides()
        self.bank = ConditionBank(c.conditions, self.emb)
        self.time = TimeEmbedding(self.emb, features=c.width, scale=c.time_scale)
        widths = [c.width * m for m in c.multipliers]
        conv = CONV[self.axes]
        self.input = conv(self.layout.channels + self.bank.extra_channels, c.width, 3, padding=1)
        skips = self._encoder(widths)
        last = widths[-1]
        middle_attention = self._attention(last) if c.middle_attention else None
        self.middle = nn.ModuleList(
            [Layer(self._res(last, last), middle_attention), Layer(self._res(last, last), None)]
        )
        self._decoder(widths, skips)
        self.norm = GroupNorm(c.width, c.groups)
        channels = self.layout.channels * (c.outputs + c.learned_variance)
        self.output = zeroed(conv(c.width, channels, 3, padding=1))
        set_attention(self, c.attention)
        if self.memory_format is not torch.contiguous_format:
            self.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]: missing in torch's stubs

    @property
    def memory_format(self) -> torch.memory_format:
        """What activations are kept in."""
        return _FORMAT.get(self.axes, torch.contiguous_format) if self.config.channels_last else torch.contiguous_format

    def _strides(self) -> list[tuple[int, ...]]:
        given, n = self.config.strides, len(self.config.multipliers) - 1
        each = given if isinstance(given, tuple) else (given,) * n
        if len(each) != n:
            raise BadValue(f"{n + 1} levels have {n} transitions, got {len(each)} strides: {given}")
        return [per_axis(stride, self.axes, "a stride") for stride in each]

    def _res(self, inner: int, outer: int) -> ResBlock:
        return ResBlock(self.axes, inner, outer, self.emb, self.config.groups, self.config.film)

    def _attention(self, channels: int) -> AttentionBlock:
        c = self.config
        context = self.emb if self.bank.has_tokens else None
        return AttentionBlock(channels, heads_of(channels, c.head_width), c.groups, context, c.attention)

    def _encoder(self, widths: list[int]) -> list[int]:
        """Builds ``self.down``; the channels of each stored activation."""
        self.down, skips = nn.ModuleList(), [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(self.config.layers):
                attention = self._attention(width) if level in self.config.attention_levels else None
                self.down.append(Layer(self._res(skips[-1], width), attention, stores=self.config.skip != "none"))
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(Downsample(width, self.strides[level], stores=self.config.skip != "none"))
                skips.append(width)
        return skips

    def _decoder(self, widths: list[int], skips: list[int]) -> None:
        self.up, channels = nn.ModuleList(), widths[-1]
        for level in reversed(range(len(widths))):
            for _ in range(self.config.layers + 1):
                attention = self._attention(widths[level]) if level in self.config.attention_levels else None
                self.up.append(self._decoder_layer(channels, skips.pop(), widths[level], attention))
                channels = widths[level]
            if level > 0:
                self.up.append(Upsample(channels, self.strides[level - 1]))

    def _decoder_layer(self, inner: int, skip: int, outer: int, attention: AttentionBlock | None) -> Layer:
        kind = self.config.skip
        if kind == "concat":
            return Layer(self._res(inner + skip, outer), attention, takes=True)
        join = (CONV[self.axes](skip, inner, 1) if skip != inner else nn.Identity()) if kind == "add" else None
        return Layer(self._res(inner, outer), attention, join, takes=kind == "add")

    def start(self, x: Tensor, time: Tensor, cond: Conditions) -> UNetHidden:
        x = self.layout.channel_first(x)
        told = self.bank(cond, x, self.layout.channel_first)
        x = torch.cat([x, *told.maps], dim=1) if told.maps else x
        if self.memory_format is not torch.contiguous_format and self.norm.backend == "sdpa":
            x = x.contiguous(memory_format=self.memory_format)
        c = self.time(self._grouped(time, x))
        c = F.silu(c if told.vector is None else c + told.vector[:, None])
        h = self.input(x)
        skips = [] if self.config.skip == "none" else [h]
        return UNetHidden(h, c, told.tokens, told.mask, skips, [])

    def _grouped(self, time: Tensor, x: Tensor) -> Tensor:
        """Times as (B, G): one for all, or one per frame."""
        if time.ndim == 1:
            return time[:, None]
        per_frame = self.layout.name in ("video", "series") and all(stride[0] == 1 for stride in self.strides)
        if not per_frame or time.ndim != 2 or time.shape[1] != x.shape[2]:
            allowed = f"(B,) or (B, {x.shape[2]})" if per_frame else "(B,)"
            raise BadValue(
                f"times of this UNet ({self.layout.name}, strides {self.strides}) are {allowed}, got "
                f"{tuple(time.shape)}"
            )
        return time

    def layers(self) -> list[tuple[str, nn.Module]]:
        parts = (("down", self.down), ("middle", self.middle), ("up", self.up))
        return [(f"{part}.{i}", layer) for part, layers in parts for i, layer in enumerate(layers)]

    def step(self, layer: nn.Module, hidden: UNetHidden) -> None:
        h = hidden
        if isinstance(layer, Upsample):
            h.x = self.run(layer, h.x, h.sizes.pop())
            return
        if isinstance(layer, Downsample):
            h.sizes.append(tuple(h.x.shape[2:]))
            h.x = self.run(layer, h.x)
        else:
            h.x = self.run(layer, h.x, h.c, h.context, h.context_mask, h.skips.pop() if layer.takes else None)
        if layer.stores:
            h.skips.append(h.x)

    def control_attention(self, control: AttentionControl) -> AbstractContextManager[None]:
        """The attentions under control for a while; see :class:`condiff.sampling.AttentionEdit`.

        Raises:
            Incompatible: no condition tokens that are attended to.
        """
        return control_attentions(self, control)

    def head(self, hidden: UNetHidden) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        if hidden.x.shape[1] != self.config.width or hidden.sizes:
            raise BadValue(
                f"a UNet's head reads the last level, of {self.config.width} channels, got {hidden.x.shape[1]}"
            )
        out = self.output(F.silu(self.norm(hidden.x)))
        return split_variance(out, self.layout, self.config.outputs, self.config.learned_variance)

    def features(self, hidden: UNetHidden) -> Tensor:
        """What the output layer reads, (B, N, width): a token a place."""
        return hidden.x.flatten(2).mT

    def arrange(self, values: Tensor, hidden: UNetHidden, shape: tuple[int, ...]) -> Tensor:
        """(B, N, :meth:`token_size`) in the order of the tokens -> (B, *shape), a sample of other channels."""
        return self.layout.restore(values.mT.unflatten(2, hidden.x.shape[2:]))

    def token_size(self, shape: tuple[int, ...]) -> int:
        """Numbers of a sample of that shape that belong to a token."""
        return shape[self.layout.channel_axis]
