"""The block of a video transformer: attention within frames, to reference frames, and along time.

Frames are ``[prefix | target]``: the first ``prefix`` ones are clean and given. With a cache the prefix isn't there:
its keys and values are, and they are the same, because a prefix frame sees only frames before it and a time that
doesn't change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condiff.networks.attention import Attention
from condiff.networks.base import zeroed
from condiff.networks.cache import FrameCache, Pair
from condiff.networks.dit_blocks import MLPFeedForward, gated, modulate

TEMPORAL = ("causal", "block", "full")


def frame_mask(frames: int, past: int = 0, *, prefix: int = 0, temporal: str = "causal") -> Tensor | None:
    """Which of ``past + frames`` frames each of the last ``frames`` sees, (frames, past + frames); None for all.

    ``"causal"``: itself and those before. ``"block"``: a prefix frame as in causal, the frames behind the prefix all
    of them. ``"full"``: all.
    """
    if temporal == "full" or (temporal == "block" and prefix == 0) or frames == 1:
        return None
    seen = torch.ones(frames, past + frames, dtype=torch.bool).tril(past)
    if temporal == "block":
        seen[prefix:] = True
    return None if bool(seen.all()) else seen


@dataclass(frozen=True, eq=False)
class Plan:
    """What all blocks of a pass are told of its frames.

    Args:
        frames, sites: how many, and tokens in each.
        prefix: how many of the frames are clean and given.
        mask: of :func:`frame_mask`, or None.
        added: what is added to the tokens before the first temporal attention, (frames, width), or None.
        turns: rotary factors of queries and keys along time, or None.
        flags: 1 for clean frames, (frames,), for networks that are told; or None.
        cache: where to read (or with ``write`` put) keys and values.
        write: whether this pass writes.
    """

    frames: int
    sites: int
    prefix: int
    mask: Tensor | None
    added: Tensor | None
    turns: tuple[Tensor, Tensor] | None
    flags: Tensor | None
    cache: FrameCache | None = None
    write: bool = False


class SpaceTimeBlock(nn.Module):
    """Spatial attention, attention to reference frames, temporal attention, cross-attention, feed-forward.

    With ``(shift, scale, gate) x 2 = W silu(c)`` per frame, W = 0 at the start::

        x <- x + gate_1 spatial(norm(x) (1 + scale_1) + shift_1)
        x <- x + gate_1 reference(x)             the newest given frames; zero at the start
        x <- x + gate_1 temporal(x + position)   for every site; zero at the start
        x <- x + cross(norm(x), tokens)
        x <- x + gate_2 mlp(norm(x) (1 + scale_2) + shift_2)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        index: int,
        reference: int,
        flag: bool,
        cross: bool,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.index, self.frames_kept = index, reference
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attn = Attention(width, heads, **attention)
        self.reference = Attention(width, heads, **attention) if reference else None
        self.temporal = Attention(width, heads, **attention)
        self.flag = nn.Linear(width + 1, width) if flag and index == 0 else None
        self.feed_forward = MLPFeedForward(width, hidden)
        self.cross = None
        if cross:
            self.norm_cross = nn.LayerNorm(width, eps=1e-6)
            self.cross = Attention(width, heads, context=width, **attention)
            zeroed(self.cross.out)
        for part in (self.reference, self.temporal):
            if part is not None:
                zeroed(part.out)
        if self.flag is not None:  # the identity: a flag changes nothing at the start
            zeroed(self.flag)
            with torch.no_grad():
                self.flag.weight[:, :width] = torch.eye(width)

    def forward(
        self, x: Tensor, c: Tensor, plan: Plan, context: Tensor | None, context_mask: Tensor | None, last: bool = False
    ) -> Tensor:
        """x (B, frames * sites, width), c (B, 1 or frames, width). ``last``: of a pass that only writes."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        within = modulate(x, shift1, scale1).unflatten(1, (plan.frames, plan.sites)).flatten(0, 1)
        x = gated(x, gate1, self.attn(within).view_as(x))
        kept = None
        if self.reference is not None:
            attended, kept = self._to_reference(self.reference, x, plan)
            x = gated(x, gate1, attended)
        attended, own = self._along_time(x, plan)
        if plan.write:
            assert plan.cache is not None
            plan.cache.stage(self.index, own, kept)
            if last:
                return x
        x = gated(x, gate1, attended)
        if self.cross is not None:
            x = x + self.cross(self.norm_cross(x), context, mask=context_mask)
        return gated(x, gate2, self.feed_forward(modulate(x, shift2, scale2)))

    def _along_time(self, x: Tensor, plan: Plan) -> tuple[Tensor, Pair]:
        """Attention of every site to itself in the frames it sees, and the own keys and values."""
        h = x.unflatten(1, (plan.frames, plan.sites))
        if self.index == 0:
            h = self._told(h, plan)
        h = h.transpose(1, 2).flatten(0, 1)
        q, k, v = self.temporal.split(h)
        own = (k.unflatten(0, (-1, plan.sites)), v.unflatten(0, (-1, plan.sites)))
        if plan.cache is not None and plan.cache.length:
            past = plan.cache.read(self.index, x.shape[0])
            k, v = (torch.cat([old.flatten(0, 1), new], 1) for old, new in zip(past, (k, v), strict=True))
        turn_q, turn_k = plan.turns or (None, None)
        q, k = self.temporal.prepare(q, 0, turn_q), self.temporal.prepare(k, 1, turn_k)
        out = self.temporal.out(self.temporal.attend(q, k, v, None if plan.mask is None else plan.mask[None, None]))
        return out.unflatten(0, (-1, plan.sites)).transpose(1, 2).reshape(x.shape), own

    def _told(self, h: Tensor, plan: Plan) -> Tensor:
        """Positions and flags, put into the input of the first temporal attention only."""
        if plan.added is not None:
            h = h + plan.added[:, None].to(h.dtype)
        if self.flag is not None:
            assert plan.flags is not None
            flags = plan.flags.to(h.dtype)[:, None, None].expand(*h.shape[:-1], 1)
            h = self.flag(torch.cat([h, flags], dim=-1))
        return h

    def _to_reference(self, part: Attention, x: Tensor, plan: Plan) -> tuple[Tensor, Pair | None]:
        """Prefix frames look at themselves, all others at the newest given frames; and the prefix's keys and values."""
        if plan.cache is not None and not plan.write:
            pair = plan.cache.read_reference(self.index, x.shape[0])
            return part.out(self._look(part, part.queries(x), *pair)), None
        own = plan.frames if plan.prefix == 0 or plan.write else plan.prefix
        h = x.unflatten(1, (plan.frames, plan.sites))
        q, k, v = (a.unflatten(1, (own, plan.sites)) for a in part.split(h[:, :own].flatten(1, 2)))
        single = (a.flatten(0, 1).unsqueeze(1) for a in (k, v))
        out = self._look(part, q.flatten(0, 1), *single).unflatten(0, (-1, own)).flatten(1, 2)
        if own < plan.frames:
            newest = torch.arange(own - self.frames_kept, own, device=x.device).clamp_min(0)
            rest = self._look(part, part.queries(h[:, own:].flatten(1, 2)), k[:, newest], v[:, newest])
            out = torch.cat([out, rest], dim=1)
        return part.out(out), (k, v)

    def _look(self, part: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, N, heads, d) to the tokens of frames (B, frames, sites, heads, d)."""
        return part.attend(part.prepare(q, 0, None), part.prepare(k.flatten(1, 2), 1, None), v.flatten(1, 2))
