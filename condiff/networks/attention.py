"""One attention: self, cross or joint, with a switch between a fused and a plain kernel.

``"sdpa"`` is torch's fused kernel. ``"plain"`` is written out in products and a softmax: slower, and it supports
forward-mode derivatives, double backward and ``vmap``. Both give the same numbers. The switch covers group
normalisation as well, whose fused kernel has the same limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.errors import BadValue, unknown
from condiff.networks.embedding import rotate
from condiff.networks.norm import GroupNorm

BACKENDS = ("sdpa", "plain")


def plain_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """``softmax(q k^T / sqrt(d))`` over the keys, (B, H, N, M); a query that may see no key gets zeros."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        mask = seen if mask is None else mask & seen
    if mask is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0)


class Attention(nn.Module):
    """Multi-head attention over ``(B, N, width)``.

    Args:
        width: of queries and result.
        heads: number of heads; divides the width.
        context: width of the keys' tokens for cross-attention; None for self-attention.
        qk_norm: root-mean-square normalisation of queries and keys per head, with learned gains.
        backend: ``"sdpa"`` or ``"plain"``.

    With the plain kernel the softmax weights (B, heads, N, M) pass through the submodule ``weights``, where hooks
    may read and replace them.
    """

    backend: str
    out: nn.Module

    def __init__(
        self, width: int, heads: int, *, context: int | None = None, qk_norm: bool = False, backend: str = "sdpa"
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise BadValue(f"the number of heads must divide the width, got {heads} heads and width {width}")
        self.heads, self.cross = heads, context is not None
        if context is None:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.kv = nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.out = nn.Linear(width, width)
        self.qk_gain = nn.Parameter(torch.ones(2, 1, width // heads)) if qk_norm else None
        self.weights = nn.Identity()
        set_attention(self, backend)

    def project(self, x: Tensor, rotary: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, each (B, N, heads, d), normalised and turned."""
        q, k, v = self.split(x)
        return self.prepare(q, 0, rotary), self.prepare(k, 1, rotary), v

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention as they are, which a cache keeps, each (B, N, heads, d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return q, k, v

    def queries(self, x: Tensor) -> Tensor:
        """The queries of self-attention alone, as they are, (B, N, heads, d)."""
        if type(self.qkv) is not nn.Linear:  # an adapter in its place has its own product
            return self.split(x)[0]
        width = x.shape[-1]
        return F.linear(x, self.qkv.weight[:width], self.qkv.bias[:width]).unflatten(-1, (self.heads, -1))

    def prepare(self, x: Tensor, which: int, rotary: Tensor | None) -> Tensor:
        """Queries (``which`` = 0) or keys (1), normalised and turned."""
        if self.qk_gain is not None:
            x = F.rms_norm(x, x.shape[-1:], eps=1e-6) * self.qk_gain[which].to(x.dtype)
        return x if rotary is None else rotate(x, rotary)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attention of (B, N, heads, d) queries to (B, M, heads, d) keys and values -> (B, N, width).

        ``mask``: booleans, True where a query may look: (B, M) over keys, or broadcastable to (B, heads, N, M).
        """
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        mask = mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
        if self.backend == "plain":
            out = self.weights(plain_weights(q, k, mask, causal)) @ v
        elif causal and mask is not None:
            seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask & seen)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return out.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Tensor | None = None,
    ) -> Tensor:
        """``x`` (B, N, width), ``context`` (B, M, context width) when crossing -> (B, N, width)."""
        if self.cross:
            assert context is not None
            k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
            q = self.q(x).unflatten(-1, (self.heads, -1))
            q, k = self.prepare(q, 0, rotary), self.prepare(k, 1, None)
        else:
            q, k, v = self.project(x, rotary)
        return self.out(self.attend(q, k, v, mask, causal))


def set_attention(module: nn.Module, backend: str) -> None:
    """Switch every attention (and group normalisation) in ``module`` to ``"sdpa"`` or ``"plain"``."""
    if backend not in BACKENDS:
        raise unknown("attention backend", backend, BACKENDS)
    for part in module.modules():
        if isinstance(part, Attention | GroupNorm):
            part.backend = backend


@contextmanager
def use_attention(module: nn.Module, backend: str) -> Iterator[None]:
    """``with use_attention(net, "plain"):`` switches every attention for a while."""
    before = [(part, part.backend) for part in module.modules() if isinstance(part, Attention | GroupNorm)]
    set_attention(module, backend)
    try:
        yield
    finally:
        for part, old in before:
            part.backend = old
