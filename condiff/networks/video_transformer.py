"""Video transformer with separate attention in space and time (Gao 2025, arXiv 2411.16375; Zheng 2024, Open-Sora 1).

Every frame has its own time, tokens attend within their frame, to the newest given frames, and along time to the same
site of other frames. With ``temporal="causal"`` a frame's features depend on the frames before it only, so that keys
and values of finished frames may be kept (:class:`condiff.networks.FrameCache`) and shared by all later calls::

    cache = net.new_cache(max_frames=25)
    net.write(frames, zeros, cond, cache)                        # given frames, told time 0
    net(x_t, time, cond, cache=cache)                            # a chunk behind them, at any time
    net(cat([frames, x_t]), cat([zeros, time]), cond, prefix=n)  # the same without a cache
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions import ConditionBank, Conditions
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.fields import checked
from condiff.networks.attention import BACKENDS
from condiff.networks.base import Network, configured, freeze, split_variance, zeroed
from condiff.networks.cache import FrameCache
from condiff.networks.dit_blocks import modulate
from condiff.networks.embedding import TimeEmbedding, grid_positions, rotary, sincos
from condiff.networks.layout import layout_of, patchify, per_axis, unpatchify
from condiff.networks.space_time_blocks import TEMPORAL, Plan, SpaceTimeBlock, frame_mask

POSITIONS = ("cyclic", "sincos", "rotary", "none")


@dataclass(frozen=True, kw_only=True)
@checked
class VideoTransformerConfig:
    """A :class:`VideoTransformer`.

    Args:
        shape: of one sample, (F, C, H, W). Any number of frames is taken; F is the length that it is trained with.
        width, depth, heads: of the transformer.
        patch: side of a patch, or (1, height, width): a patch never spans frames.
        mlp_ratio: hidden width of the feed-forward over ``width``.
        temporal: what a frame sees along time: ``"causal"`` those before it, ``"block"`` as a given frame those before
            it and else all, ``"full"`` all (which no cache fits).
        reference: how many of the newest given frames all tokens of a later frame look at (prefix-enhanced spatial
            attention); 0 for none.
        positions: of frames. ``"cyclic"``: sine and cosine of the number modulo ``max_frames``; ``"sincos"``: of the
            number, below ``max_frames``; ``"rotary"``: differences only, in attention; ``"none"``.
        max_frames: length of the table of positions; F when None.
        flag: tell the first block which frames are clean.
        qk_norm, attention, outputs, learned_variance, conditions, time_scale, checkpoint: as for
            :class:`condiff.networks.DiTConfig`; conditions are vectors and tokens.
    """

    shape: tuple[int, ...]
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int | tuple[int, ...] = 2
    mlp_ratio: float = 4.0
    temporal: str = "causal"
    reference: int = 3
    positions: str = "cyclic"
    max_frames: int | None = None
    flag: bool = False
    qk_norm: bool = False
    attention: str = "sdpa"
    outputs: int = 1
    learned_variance: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    time_scale: float = 1000.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        freeze(self, "shape", "patch")
        layout_of(self.shape, "video")
        for name, known in (("temporal", TEMPORAL), ("positions", POSITIONS), ("attention", BACKENDS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if min(self.width, self.depth, self.outputs) < 1 or self.mlp_ratio <= 0.0 or self.reference < 0:
            raise BadValue(f"width, depth, outputs and mlp_ratio must be positive, reference at least 0, got {self}")
        if self.table < 1:
            raise BadValue(f"max_frames must be at least 1, got {self.max_frames}")
        if isinstance(self.patch, tuple) and self.patch[:1] != (1,):
            raise BadValue(
                f"a patch spans one frame, so that chunks of any length fit: (1, height, width); {self.patch}"
            )

    @property
    def table(self) -> int:
        """Length of the table of positions."""
        return self.shape[0] if self.max_frames is None else self.max_frames

    def build(self) -> VideoTransformer:
        return VideoTransformer(self)


@dataclass
class FramesHidden:
    """Between two layers: tokens ``x`` (B, frames * sites, width), ``c`` (B, 1 or frames, width), condition tokens."""

    x: Tensor
    c: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    plan: Plan
    grid: tuple[int, ...]


class VideoTransformer(Network):
    """``VideoTransformer(shape=(33, 4, 32, 32), width=384, depth=12)``: see :class:`VideoTransformerConfig`.

    ``net(x, time, cond)``: x (B, F, C, H, W), time (B,) or per frame (B, F) -> x's shape, times ``outputs`` in
    dimension 1; with ``learned_variance`` a pair of it and aux. Options of the call:

    * ``prefix``: how many of the frames are given and clean; they look at no later frame.
    * ``cache``: the frames before x, as :meth:`write` left them; none of them is in x.
    * ``first``: number of the first frame, for positions; without a cache, 0 by default.
    """

    any_size: ClassVar[bool] = True
    any_frames: ClassVar[bool] = True
    config: VideoTransformerConfig

    def __init__(self, config: VideoTransformerConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = configured(VideoTransformerConfig, config, fields)
        self.layout = layout_of(config.shape, "video")
        self.patch = (1, *per_axis(config.patch, 2, "patch")) if isinstance(config.patch, int) else config.patch
        self.patch = per_axis(self.patch, 3, "patch")
        width, volume = config.width, math.prod(self.patch)
        self.bank = ConditionBank(config.conditions, width, maps=False)
        self.time = TimeEmbedding(width, scale=config.time_scale)
        self.embed = nn.Linear(self.layout.channels * volume, width)
        self.stack = nn.ModuleList(
            SpaceTimeBlock(
                width,
                config.heads,
                int(width * config.mlp_ratio),
                index=i,
                reference=config.reference,
                flag=config.flag,
                cross=self.bank.has_tokens,
                qk_norm=config.qk_norm,
                backend=config.attention,
            )
            for i in range(config.depth)
        )
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        channels = self.layout.channels * (config.outputs + config.learned_variance)
        self.output = zeroed(nn.Linear(width, channels * volume))
        for linear in (self.embed, self.time.fc1, self.time.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    # Caches

    def new_cache(self, max_frames: int | None = None, branches: int = 1) -> FrameCache:
        """An empty cache for this network.

        Raises:
            Incompatible: a network whose frames see later ones.
        """
        self._check_cached()
        return FrameCache(self.config.depth, max_frames, reference=self.config.reference, branches=branches)

    def _check_cached(self) -> None:
        if self.config.temporal == "full":
            raise Incompatible(
                "with temporal='full' a frame sees later ones, so that nothing of it can be kept: build the network "
                "with temporal='causal' or 'block', or let the rollout recompute its context"
            )

    def write(self, x: Tensor, time: Tensor, cond: Any, cache: FrameCache) -> None:
        """Put the keys and values of finished frames, (B, F, C, H, W), behind those of the cache.

        Args:
            time: the time that clean frames are told, (B,) or (B, F).

        Raises:
            BadValue: more frames than the cache holds, another batch than before.
            Incompatible: a network that isn't causal.
        """
        self._check_cached()
        cache.open(x.shape[0], x.shape[1])
        hidden = self.begin(x, time, cond, cache=cache, write=True)
        for name, layer in self.layers():
            del name
            hidden.x = layer(*self._inputs(hidden), last=layer is self.stack[-1])
        cache.commit(x.shape[0], x.shape[1])

    def position_starts(self, frames: int) -> int:
        """How many numbers the first of ``frames`` frames may have in training: all, where positions run in a circle
        that the frames fill; else only 0.
        """
        return self.config.table if self.config.positions == "cyclic" and frames == self.config.table else 1

    # The walk

    def start(
        self,
        x: Tensor,
        time: Tensor,
        cond: Conditions,
        *,
        prefix: int = 0,
        cache: FrameCache | None = None,
        write: bool = False,
        first: int | None = None,
    ) -> FramesHidden:
        frames = x.shape[1]
        self._check_call(x, time, prefix, cache, write, first)
        told = self.bank(cond, self.layout.channel_first(x))
        h, grid = self._embedded(x)
        c = self.time(time[:, None] if time.ndim == 1 else time)
        c = F.silu(c if told.vector is None else c + told.vector[:, None])
        plan = self._plan(frames, math.prod(grid[1:]), prefix, cache, write, first or 0, x.device)
        return FramesHidden(h, c, told.tokens, told.mask, plan, grid)

    def _check_call(
        self, x: Tensor, time: Tensor, prefix: int, cache: FrameCache | None, write: bool, first: int | None
    ) -> None:
        frames = x.shape[1]
        if time.ndim > 2 or (time.ndim == 2 and time.shape[1] not in (1, frames)):
            raise BadValue(f"times of {frames} frames are (B,) or (B, {frames}), got {tuple(time.shape)}")
        if isinstance(prefix, bool) or not isinstance(prefix, int):
            raise BadType(f"prefix is a number of frames, got {prefix!r}")
        if not 0 <= prefix <= frames:
            raise BadValue(f"the prefix is at most all of {frames} frames, got {prefix}")
        if cache is None:
            return
        self._check_cached()
        if prefix or first is not None:
            raise BadValue("with a cache the frames before are in it: leave prefix= and first= out")
        if cache.layers != self.config.depth or cache.reference != self.config.reference:
            raise BadValue(f"{cache} belongs to another network: make it with new_cache()")
        if not write:
            cache.check_read(x.shape[0])

    def _embedded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens of all frames with their places in the frame, and the grid of patches."""
        x = self.layout.channel_first(x)
        sizes = x.shape[2:]
        if any(n % p for n, p in zip(sizes, self.patch, strict=True)):
            raise BadValue(f"patches of {self.patch[1:]} don't divide frames of {tuple(sizes[1:])}")
        grid = tuple(n // p for n, p in zip(sizes, self.patch, strict=True))
        h = self.embed(patchify(x, self.patch))
        places = sincos(grid_positions(grid[1:]), self.config.width).to(h)
        return h + places.repeat(grid[0], 1), grid

    def _plan(
        self, frames: int, sites: int, prefix: int, cache: FrameCache | None, write: bool, first: int, device: Any
    ) -> Plan:
        past = 0 if cache is None else cache.length
        temporal = "causal" if write else self.config.temporal
        if cache is not None and not write and temporal == "block":
            mask = None  # the chunk sees all that is held, and all of itself
        else:
            mask = frame_mask(frames, past, prefix=prefix, temporal=temporal)
        added = turns = None
        if self.config.positions == "rotary":
            ids = torch.arange(past + frames, dtype=torch.float32, device=device)[:, None]
            turn = rotary(ids, self.config.width // self.config.heads)
            turns = (turn[:, past:], turn)
        elif self.config.positions != "none":
            added = self._positions(frames, past, first if cache is None else cache.count, device)
        clean = frames if write else prefix
        flags = (torch.arange(frames, device=device) < clean).float() if self.config.flag else None
        return Plan(frames, sites, prefix, None if mask is None else mask.to(device), added, turns, flags, cache, write)

    def _positions(self, frames: int, past: int, first: int, device: Any) -> Tensor:
        """What the numbers of the frames add to their tokens, (frames, width)."""
        table, cyclic = self.config.table, self.config.positions == "cyclic"
        if past + frames > table if cyclic else first + frames > table:
            what = f"{past + frames} frames are seen at once" if cyclic else f"frame {first + frames - 1} is wanted"
            raise BadValue(
                f"{what}, and there are {table} positions: give the network a larger max_frames=, a shorter context"
                + ("" if cyclic else ", or positions that are 'cyclic' or 'rotary'")
            )
        return sincos(position_ids(first, frames, table).float()[:, None].to(device), self.config.width)

    def layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"stack.{i}", layer) for i, layer in enumerate(self.stack)]

    def _inputs(self, hidden: FramesHidden) -> tuple[Any, ...]:
        return hidden.x, hidden.c, hidden.plan, hidden.context, hidden.context_mask

    def step(self, layer: nn.Module, hidden: FramesHidden) -> None:
        hidden.x = self.run(layer, *self._inputs(hidden))

    def head(self, hidden: FramesHidden) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        shift, scale = self.modulation(hidden.c).chunk(2, dim=-1)
        out = unpatchify(self.output(modulate(hidden.x, shift, scale)), hidden.grid, self.patch)
        return split_variance(out, self.layout, self.config.outputs, self.config.learned_variance)


def position_ids(first: int, frames: int, table: int) -> Tensor:
    """``(first + i) mod table`` for i = 0 ... frames - 1, (frames,) integers."""
    return (first + torch.arange(frames)) % table
