"""The blocks of a diffusion transformer: adaLN-zero, alone, with cross-attention, or joint with condition tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.networks.attention import Attention
from condiff.networks.base import zeroed


def _per_group(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
    """Tokens (B, N, D) and factors (B, G, D) brought to shapes that broadcast, tokens of a group being neighbours."""
    groups = factors[0].shape[1]
    if groups in (1, x.shape[1]):
        return (x, *factors)
    return (x.unflatten(1, (groups, -1)), *(f.unsqueeze(2) for f in factors))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) (1 + scale) + shift``: x (B, N, D); shift, scale (B, G, D)."""
    grouped, shift, scale = _per_group(F.layer_norm(x, x.shape[-1:], eps=1e-6), shift, scale)
    return torch.addcmul(shift, grouped, 1.0 + scale).view_as(x)


def gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """``x + gate update``: x, update (B, N, D); gate (B, G, D)."""
    grouped, gate = _per_group(update, gate)
    return torch.addcmul(x.view_as(grouped), gate, grouped).view_as(x)


class MLPFeedForward(nn.Module):
    """``W2 gelu(W1 x)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention to condition tokens when asked, feed-forward."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        cross: bool,
        qk_norm: bool,
        backend: str,
        feed_forward: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attn = Attention(width, heads, qk_norm=qk_norm, backend=backend)
        self.feed_forward = MLPFeedForward(width, hidden) if feed_forward is None else feed_forward
        self.cross = None
        if cross:
            self.norm_cross = nn.LayerNorm(width, eps=1e-6)
            self.cross = Attention(width, heads, context=width, qk_norm=qk_norm, backend=backend)
            zeroed(self.cross.out)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        context: Tensor | None,
        context_mask: Tensor | None,
        context_c: Tensor | None,
        rotary: Tensor | None,
        mask: Tensor | None,
        pairing: Any = None,
    ) -> Tensor:
        """``pairing``: rows that attend to each other, for attentions that know of it (:mod:`~.pairing`)."""
        paired = {} if pairing is None else {"pairing": pairing}
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        x = gated(x, gate1, self.attn(modulate(x, shift1, scale1), rotary=rotary, mask=mask, **paired))
        if self.cross is not None:
            x = x + self.cross(self.norm_cross(x), context, mask=context_mask, **paired)
        return gated(x, gate2, self.feed_forward(modulate(x, shift2, scale2)))


class ContextStream(nn.Module):
    """The condition tokens' half of a joint block. In the last block they only give keys and values."""

    def __init__(self, width: int, heads: int, hidden: int, *, last: bool, qk_norm: bool) -> None:
        super().__init__()
        self.last = last
        self.modulation = zeroed(nn.Linear(width, (2 if last else 6) * width))
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.feed_forward = None if last else MLPFeedForward(width, hidden)
        if last:
            self.attn.out = nn.Identity()

    def enter(self, context: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """The later factors, and queries, keys and values."""
        shift, scale, *later = self.modulation(c).chunk(2 if self.last else 6, dim=-1)
        return tuple(later), self.attn.project(modulate(context, shift, scale))

    def leave(self, context: Tensor, attended: Tensor, later: tuple[Tensor, ...]) -> Tensor:
        """The tokens after attention and feed-forward."""
        assert self.feed_forward is not None
        gate1, shift2, scale2, gate2 = later
        context = gated(context, gate1, self.attn.out(attended))
        return gated(context, gate2, self.feed_forward(modulate(context, shift2, scale2)))


class JointBlock(nn.Module):
    """One attention over sample and condition tokens, each with its own projections and feed-forward (MM-DiT)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        last: bool,
        qk_norm: bool,
        backend: str,
        feed_forward: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attn = Attention(width, heads, qk_norm=qk_norm, backend=backend)
        self.feed_forward = MLPFeedForward(width, hidden) if feed_forward is None else feed_forward
        self.context = ContextStream(width, heads, hidden, last=last, qk_norm=qk_norm)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        context: Tensor,
        context_mask: Tensor | None,
        context_c: Tensor,
        rotary: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        q, k, v = self.attn.project(modulate(x, shift1, scale1), rotary)
        later, (cq, ck, cv) = self.context.enter(context, context_c)
        n = x.shape[1]
        q = q if self.context.last else torch.cat([q, cq], dim=1)
        seen = joint_mask(n, q.shape[1], context, context_mask, mask)
        out = self.attn.attend(q, torch.cat([k, ck], dim=1), torch.cat([v, cv], dim=1), seen)
        x = gated(x, gate1, self.attn.out(out[:, :n]))
        x = gated(x, gate2, self.feed_forward(modulate(x, shift2, scale2)))
        return x, context if self.context.last else self.context.leave(context, out[:, n:], later)


def joint_mask(
    n: int, queries: int, context: Tensor, context_mask: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """Who sees whom in ``[sample | context]``: sample tokens as ``mask`` says, absent context tokens nobody."""
    if context_mask is None and mask is None:
        return None
    total = n + context.shape[1]
    out = torch.ones(context.shape[0], 1, queries, total, dtype=torch.bool, device=context.device)
    if mask is not None:
        out = out.expand(-1, mask.shape[1], -1, -1).clone()
        out[:, :, :n, :n] = mask
    if context_mask is not None:
        out = out & torch.cat([context_mask.new_ones(context.shape[0], n), context_mask], dim=1)[:, None, None, :]
    return out
