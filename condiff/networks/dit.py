"""Diffusion transformer (Peebles 2023, arXiv 2212.09748) for images, volumes, video, series and signals.

A sample is cut into patches, which become tokens; each block is adaLN-zero: with ``c`` the embedded time and vector
conditions, ``(shift, scale, gate) x 2 = W silu(c)``, W = 0 at the start,

    ``x <- x + gate_1 attention(norm(x) (1 + scale_1) + shift_1)``
    ``x <- x + gate_2 mlp(norm(x) (1 + scale_2) + shift_2)``

Token conditions enter by cross-attention in every block, or join the sequence (``tokens="joint"``, with their own
projections, as in MM-DiT, Esser 2024, arXiv 2403.03206). The time may differ per frame or per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions import ConditionBank, Conditions
from condiff.errors import BadValue, Incompatible, unknown
from condiff.fields import checked
from condiff.networks.attention import BACKENDS, Attention
from condiff.networks.attention_control import AttentionControl, control_attentions
from condiff.networks.base import Network, configured, freeze, split_variance, zeroed
from condiff.networks.dit_blocks import Block, JointBlock, modulate
from condiff.networks.embedding import TimeEmbedding, grid_positions, rotary, sincos
from condiff.networks.layout import layout_of, patchify, per_axis, unpatchify
from condiff.networks.paired_attention import PairedAttention
from condiff.networks.pairing import Pairing, Site
from condiff.networks.surgery import Swap

POSITIONS = ("sincos", "rotary", "none")
TOKENS = ("cross", "joint")
FeedForward = Callable[[int, int, int], nn.Module | None]


@dataclass(frozen=True, kw_only=True)
@checked
class DiTConfig:
    """A :class:`DiT`.

    Args:
        shape: of one sample.
        layout: image, volume, video, series or signal; by the number of axes when None (4 axes: volume).
        width, depth, heads: of the transformer.
        patch: size of a patch, one number or one per spatial axis. Must divide the sample.
        mlp_ratio: hidden width of the feed-forward over ``width``.
        positions: ``"sincos"`` (added), ``"rotary"`` (in attention) or ``"none"``.
        tokens: how token conditions enter, ``"cross"`` or ``"joint"``.
        qk_norm: root-mean-square normalisation of queries and keys.
        attention: ``"sdpa"``, or ``"plain"`` for forward-mode derivatives, double backward and vmap.
        outputs: targets predicted side by side in dimension 1.
        learned_variance: as many more channels, returned as aux ``{"variance": ...}``.
        conditions: name -> spec.
        time_scale: what times are multiplied by before their sine-cosine embedding.
        checkpoint: recompute activations in the backward pass.
    """

    shape: tuple[int, ...]
    layout: str | None = None
    width: int = 384
    depth: int = 12
    heads: int = 4
    patch: int | tuple[int, ...] = 2
    mlp_ratio: float = 4.0
    positions: str = "sincos"
    tokens: str = "cross"
    qk_norm: bool = False
    attention: str = "sdpa"
    outputs: int = 1
    learned_variance: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    time_scale: float = 1000.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        freeze(self, "shape", "patch")
        for name, known in (("positions", POSITIONS), ("tokens", TOKENS), ("attention", BACKENDS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if min(self.width, self.depth, self.outputs) < 1 or self.mlp_ratio <= 0.0:
            raise BadValue(f"width, depth, outputs and mlp_ratio must be positive, got {self}")
        if layout_of(self.shape, self.layout).name == "vector":
            raise BadValue(f"a DiT needs samples with at least one spatial axis, got shape {self.shape}; use an MLP")

    def build(self, feed_forward: FeedForward | None = None) -> DiT:
        return DiT(self, feed_forward=feed_forward)


@dataclass
class Hidden:
    """Between two layers.

    Attributes:
        x: tokens of the sample (B, N, width).
        c: silu of embedded time and vector conditions, (B, G, width) with G = 1, frames or tokens.
        context: tokens of the conditions (B, M, width), or None.
        context_mask: which of them are there (B, M), or None.
        context_c: what modulates joint condition tokens, (B, 1, width).
        rotary: factors of the positions, or None.
        mask: which tokens a token may look at, broadcastable to (B, heads, N, N), or None for all.
        grid: patches along each axis.
        pairing: rows that attend to each other, or None.
    """

    x: Tensor
    c: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    context_c: Tensor | None
    rotary: Tensor | None
    mask: Tensor | None
    grid: tuple[int, ...]
    pairing: Pairing | None = None


class DiT(Network):
    """``DiT(shape=(1, 8, 8), width=96, depth=3, conditions={"label": Label(10)})``: see :class:`DiTConfig`.

    ``net(x, time, cond)``: x (B, *shape); time (B,), per frame (B, F) of a video or position of a series (patches of
    size 1 along that axis), or per token (B, N) -> x's shape, times ``outputs`` in dimension 1; with
    ``learned_variance`` a pair of it and aux. Samples of other spatial sizes are accepted when patches divide them.

    Args:
        config: or its fields as keywords.
        feed_forward: ``(layer, width, hidden) -> module`` (or None for the ordinary one) puts another module, such
            as a mixture of experts, in a layer's feed-forward slot. A module that sets ``self.aux``, a dict of tensors,
            in its forward has it returned among the aux.
    """

    position_table: Tensor | None

    def __init__(
        self, config: DiTConfig | None = None, *, feed_forward: FeedForward | None = None, **fields: Any
    ) -> None:
        super().__init__()
        self.config = config = configured(DiTConfig, config, fields)
        self.layout = layout_of(config.shape, config.layout)
        self.patch = per_axis(config.patch, len(self.layout.spatial), "patch")
        width, volume = config.width, math.prod(self.patch)
        self.bank = ConditionBank(config.conditions, width)
        self.time = TimeEmbedding(width, scale=config.time_scale)
        self.embed = nn.Linear((self.layout.channels + self.bank.extra_channels) * volume, width)
        self.stack = nn.ModuleList(self._block(i, feed_forward) for i in range(config.depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        channels = self.layout.channels * (config.outputs + config.learned_variance)
        self.output = zeroed(nn.Linear(width, channels * volume))
        positions = grid_positions(self.grid_of(self.layout.spatial))
        self.register_buffer("position_table", self._position_factors(positions), persistent=False)
        for linear in (self.embed, self.time.fc1, self.time.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _block(self, index: int, feed_forward: FeedForward | None) -> nn.Module:
        c = self.config
        hidden = int(c.width * c.mlp_ratio)
        slot = feed_forward(index, c.width, hidden) if feed_forward else None
        common = {"qk_norm": c.qk_norm, "backend": c.attention, "feed_forward": slot}
        if c.tokens == "joint" and self.bank.has_tokens:
            return JointBlock(c.width, c.heads, hidden, last=index == c.depth - 1, **common)
        return Block(c.width, c.heads, hidden, cross=self.bank.has_tokens, **common)

    def grid_of(self, sizes: Any) -> tuple[int, ...]:
        """Patches along each axis.

        Raises:
            BadValue: sizes that the patch doesn't divide.
        """
        if any(n % p for n, p in zip(sizes, self.patch, strict=True)):
            raise BadValue(f"patches of {self.patch} don't divide samples of {tuple(sizes)}")
        return tuple(n // p for n, p in zip(sizes, self.patch, strict=True))

    def _position_factors(self, positions: Tensor) -> Tensor | None:
        if self.config.positions == "none":
            return None
        if self.config.positions == "sincos":
            return sincos(positions, self.config.width)
        return rotary(positions, self.config.width // self.config.heads)

    def start(
        self,
        x: Tensor,
        time: Tensor,
        cond: Conditions,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        pairing: Pairing | None = None,
    ) -> Hidden:
        """``positions``: coordinates of the patches (N, axes) or (B, N, axes) when they aren't a grid's own ones;
        ``mask``: booleans, which tokens a token may look at, (N, N) or broadcastable to (B, heads, N, N);
        ``pairing``: rows that attend to each other (after :func:`~condiff.networks.pairing.add_pair`)."""
        x = self.layout.channel_first(x)
        grid = self.grid_of(x.shape[2:])
        told = self.bank(cond, x, self.layout.channel_first)
        h = self.embed(patchify(torch.cat([x, *told.maps], dim=1) if told.maps else x, self.patch))
        factors = self._positions_for(grid, positions, h)
        if self.config.positions == "sincos":
            assert factors is not None
            h = h + factors.to(h.dtype)
        c = self.time(self._grouped(time, grid))
        c = F.silu(c if told.vector is None else c + told.vector[:, None])
        mask = mask[None, None] if mask is not None and mask.ndim == 2 else mask
        turn = factors if self.config.positions == "rotary" else None
        joint = told.tokens is not None and self.config.tokens == "joint"
        about = c.mean(dim=1, keepdim=True) if joint else None
        return Hidden(h, c, told.tokens, told.mask, about, turn, mask, grid, pairing)

    def _positions_for(self, grid: tuple[int, ...], positions: Tensor | None, h: Tensor) -> Tensor | None:
        if positions is not None and positions.shape[-2:] != (math.prod(grid), len(grid)):
            raise BadValue(
                f"positions of shape (..., {math.prod(grid)}, {len(grid)}) fit, got {tuple(positions.shape)}"
            )
        if positions is None and grid == self.grid_of(self.layout.spatial):
            return self.position_table
        return self._position_factors((grid_positions(grid) if positions is None else positions).to(h.device))

    def _grouped(self, time: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Times as (B, G): one for all, one per frame, or one per token."""
        if time.ndim == 1:
            return time[:, None]
        allowed = {math.prod(grid)}
        if self.layout.name in ("video", "series") and self.patch[0] == 1:
            allowed.add(grid[0])
        if time.ndim != 2 or time.shape[1] not in allowed:
            raise BadValue(
                f"times of {self.layout.name} samples with patches {self.patch} are (B,) or (B, n) with n in "
                f"{sorted(allowed)}, got {tuple(time.shape)}"
            )
        return time

    def layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"stack.{i}", layer) for i, layer in enumerate(self.stack)]

    def step(self, layer: nn.Module, hidden: Hidden) -> None:
        h = hidden
        paired = () if h.pairing is None else (h.pairing,)
        out = self.run(layer, h.x, h.c, h.context, h.context_mask, h.context_c, h.rotary, h.mask, *paired)
        hidden.x, hidden.context = out if isinstance(out, tuple) else (out, h.context)

    def make_sites(self) -> dict[str, Site]:
        """The attentions of all blocks, ready for paired rows; see :func:`~condiff.networks.pairing.sites_of`.

        Raises:
            Incompatible: condition tokens in the sequence of the sample's.
        """
        if any(isinstance(layer, JointBlock) for layer in self.stack):
            raise Incompatible("a DiT with tokens='joint' can't be paired: take tokens='cross'")
        if not any(isinstance(part, Site) for part in self.modules()):
            Swap(self.stack, Attention, lambda attention: PairedAttention(cast(Attention, attention)))
        return {name: part for name, part in self.named_modules() if isinstance(part, Site)}

    def control_attention(self, control: AttentionControl) -> AbstractContextManager[None]:
        """The attentions under control for a while; see :class:`condiff.sampling.AttentionEdit`.

        Raises:
            Incompatible: condition tokens in the sequence of the sample's, or none.
        """
        if any(isinstance(layer, JointBlock) for layer in self.stack):
            raise Incompatible("the attention of a DiT with tokens='joint' can't be controlled: take tokens='cross'")
        return control_attentions(self, control)

    def head(self, hidden: Hidden) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        shift, scale = self.modulation(hidden.c).chunk(2, dim=-1)
        tokens = self.output(modulate(hidden.x, shift, scale))
        out = unpatchify(tokens, hidden.grid, self.patch)
        out = split_variance(out, self.layout, self.config.outputs, self.config.learned_variance)
        extra = self._layer_aux()
        if not extra:
            return out
        value, aux = out if isinstance(out, tuple) else (out, {})
        return value, {**aux, **extra}

    def features(self, hidden: Hidden) -> Tensor:
        """What the output layer reads, (B, N, width): a token a patch."""
        return hidden.x

    def arrange(self, values: Tensor, hidden: Hidden, shape: tuple[int, ...]) -> Tensor:
        """(B, N, :meth:`token_size`) in the order of the tokens -> (B, *shape), a sample of other channels."""
        return self.layout.restore(unpatchify(values, hidden.grid, self.patch))

    def token_size(self, shape: tuple[int, ...]) -> int:
        """Numbers of a sample of that shape that belong to a token."""
        return shape[self.layout.channel_axis] * math.prod(self.patch)

    def _layer_aux(self) -> dict[str, Tensor]:
        """What feed-forward modules left in their ``aux`` during this pass."""
        found: dict[str, Tensor] = {}
        for name, layer in self.layers():
            for key, value in (getattr(layer.feed_forward, "aux", None) or {}).items():
                found[f"{name}.{key}"] = value
        return found
