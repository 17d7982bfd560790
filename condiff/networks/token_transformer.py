"""Transformer over token sequences (Ou 2025, arXiv 2406.03736, appendix; Peebles 2023 where it is told something).

Full bidirectional attention with rotary positions in pre-norm blocks, dropout behind attention and feed-forward::

    x <- x + attention(norm(x))        x <- x + mlp(norm(x))

Told nothing but the tokens, ``norm`` is a plain layer normalisation: the network of time-free absorbing diffusion.
Told the time (``time=True``) or vector conditions it is adaLN-zero, as in :class:`DiT`. The head starts at zero, so
that a fresh network says that all tokens are equally likely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions import ConditionBank, Conditions, as_conditions
from condiff.errors import BadType, BadValue, unknown
from condiff.fields import checked
from condiff.networks.attention import BACKENDS, Attention
from condiff.networks.base import Network, configured, freeze, zeroed
from condiff.networks.dit_blocks import MLPFeedForward, gated, modulate
from condiff.networks.embedding import TimeEmbedding, grid_positions, rotary


@dataclass(frozen=True, kw_only=True)
@checked
class TokenTransformerConfig:
    """A :class:`TokenTransformer`.

    Args:
        shape: of one sequence, (L,). Other lengths are taken too: positions are rotary.
        vocab: number of data tokens V; MASK, id V, is embedded besides them and never predicted.
        width, depth, heads: of the transformer.
        mlp_ratio: hidden width of the feed-forward over ``width``.
        time: whether it is told the time.
        conditions: name -> spec, of vectors and of tokens to attend to.
        dropout: behind attention and feed-forward, in training.
        attention: ``"sdpa"``, or ``"plain"`` for forward-mode derivatives.
        time_scale: what times are multiplied by before their sine-cosine embedding.
        checkpoint: recompute activations in the backward pass.
    """

    shape: tuple[int, ...]
    vocab: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    time: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = 0.0
    attention: str = "sdpa"
    time_scale: float = 1000.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        freeze(self, "shape")
        if len(self.shape) != 1 or self.shape[0] < 1:
            raise BadValue(f"token sequences have one axis, (length,), got shape {self.shape}")
        if self.vocab < 2:
            raise BadValue(f"vocab must be at least 2 (MASK not counted), got {self.vocab}")
        if min(self.width, self.depth) < 1 or self.mlp_ratio <= 0.0:
            raise BadValue(f"width, depth and mlp_ratio must be positive, got {self}")
        if not 0.0 <= self.dropout < 1.0:
            raise BadValue(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.attention not in BACKENDS:
            raise unknown("attention", self.attention, BACKENDS)

    def build(self) -> TokenTransformer:
        return TokenTransformer(self)


class TokenBlock(nn.Module):
    """Self-attention, cross-attention to condition tokens when asked, feed-forward; adaLN-zero when told something."""

    def __init__(self, config: TokenTransformerConfig, *, told: bool, cross: bool) -> None:
        super().__init__()
        width = config.width
        self.modulation = zeroed(nn.Linear(width, 6 * width)) if told else None
        self.norms = None if told else nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for _ in range(2))
        self.attn = Attention(width, config.heads, backend=config.attention)
        self.feed_forward = MLPFeedForward(width, int(width * config.mlp_ratio))
        self.dropout = nn.Dropout(config.dropout)
        self.cross = None
        if cross:
            self.norm_cross = nn.LayerNorm(width, eps=1e-5)
            self.cross = Attention(width, config.heads, context=width, backend=config.attention)
            zeroed(self.cross.out)

    def forward(
        self, x: Tensor, c: Tensor | None, context: Tensor | None, context_mask: Tensor | None, turn: Tensor
    ) -> Tensor:
        if self.modulation is None:
            assert self.norms is not None
            x = x + self.dropout(self.attn(self.norms[0](x), rotary=turn))
            x = self._crossed(x, context, context_mask)
            return x + self.dropout(self.feed_forward(self.norms[1](x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        x = gated(x, gate1, self.dropout(self.attn(modulate(x, shift1, scale1), rotary=turn)))
        x = self._crossed(x, context, context_mask)
        return gated(x, gate2, self.dropout(self.feed_forward(modulate(x, shift2, scale2))))

    def _crossed(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        return x if self.cross is None else x + self.cross(self.norm_cross(x), context, mask=mask)


@dataclass
class TokenHidden:
    """Between two layers: ``x`` (B, L, width), ``c`` (B, G, width) or None, condition tokens and their mask."""

    x: Tensor
    c: Tensor | None
    context: Tensor | None
    context_mask: Tensor | None
    turn: Tensor


class TokenTransformer(Network):
    """``TokenTransformer(shape=(64,), vocab=27, width=128, depth=4, heads=4)``: see :class:`TokenTransformerConfig`.

    ``net(x, time, cond)``: ids x (B, L) with MASK = V, or soft one-hots (B, L, V + 1) -> logits (B, L, V). ``time``
    (B,) or (B, L) is read only by a network built with ``time=True``, and None will do for others.
    """

    turn: Tensor

    def __init__(self, config: TokenTransformerConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = configured(TokenTransformerConfig, config, fields)
        width = config.width
        self.bank = ConditionBank(config.conditions, width, maps=False)
        self.time = TimeEmbedding(width, scale=config.time_scale) if config.time else None
        told = config.time or any(spec.role == "vector" for spec in config.conditions.values())
        self.embed = nn.Embedding(config.vocab + 1, width)
        nn.init.normal_(self.embed.weight, std=1.0 / math.sqrt(width))
        self.stack = nn.ModuleList(
            TokenBlock(config, told=told, cross=self.bank.has_tokens) for _ in range(config.depth)
        )
        self.modulation = zeroed(nn.Linear(width, 2 * width)) if told else None
        self.norm = None if told else nn.LayerNorm(width, eps=1e-5)
        self.output = zeroed(nn.Linear(width, config.vocab))
        self.register_buffer("turn", self._turn(config.shape[0]), persistent=False)

    @property
    def time_free(self) -> bool:
        """Whether it is never told the time."""
        return self.time is None

    def _turn(self, length: int) -> Tensor:
        return rotary(grid_positions((length,)), self.config.width // self.config.heads)

    def begin(self, x: Tensor, time: Tensor | None, cond: Any = None, **options: Any) -> TokenHidden:
        soft = x.dtype.is_floating_point
        if x.dtype == torch.bool or x.ndim != 2 + soft or (soft and x.shape[-1] != self.config.vocab + 1):
            raise BadType(
                f"tokens are ids (B, L), or one-hots (B, L, {self.config.vocab + 1}), got {x.dtype} {tuple(x.shape)}"
            )
        if self.time is not None and (time is None or time.shape not in (x.shape[:1], x.shape[:2])):
            got = None if time is None else tuple(time.shape)
            raise BadValue(f"a network that is told the time needs one per row or token of {tuple(x.shape)}, got {got}")
        return self.start(x, time, as_conditions(cond, self.condition_kinds, x.device), **options)

    def start(self, x: Tensor, time: Tensor | None, cond: Conditions, **options: Any) -> TokenHidden:
        told = self.bank(cond, x)
        h = x.to(self.embed.weight.dtype) @ self.embed.weight if x.dtype.is_floating_point else self.embed(x)
        c = None if told.vector is None else told.vector[:, None]
        if self.time is not None:
            assert time is not None
            embedded = self.time(time[:, None] if time.ndim == 1 else time)
            c = embedded if c is None else c + embedded
        turn = self.turn if x.shape[1] == self.turn.shape[1] else self._turn(x.shape[1]).to(self.turn)
        return TokenHidden(h, None if c is None else F.silu(c), told.tokens, told.mask, turn)

    def layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"stack.{i}", layer) for i, layer in enumerate(self.stack)]

    def step(self, layer: nn.Module, hidden: TokenHidden) -> None:
        h = hidden
        hidden.x = self.run(layer, h.x, h.c, h.context, h.context_mask, h.turn)

    def head(self, hidden: TokenHidden) -> Tensor:
        if self.modulation is None:
            assert self.norm is not None
            return self.output(self.norm(hidden.x))
        shift, scale = self.modulation(hidden.c).chunk(2, dim=-1)
        return self.output(modulate(hidden.x, shift, scale))
