"""A network for series: gated residual blocks that mix along the sequence by state spaces (DiffWave, SSSD, TSDiff).

``h = relu(W x)``, then block by block, with c the embedded time and conditions of the row::

    u = h + W_c c                  u <- u + W gelu(state space(norm(u))) + W_m maps
    g = tanh(u) sigmoid(u)         h <- h + W_h g          skips <- skips + W_s g

and ``out = W_2 relu(W_1 skips)``. It sees series of any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions import ConditionBank, Conditions
from condiff.errors import BadValue
from condiff.fields import checked
from condiff.networks.base import Network, configured, freeze, zeroed
from condiff.networks.embedding import TimeEmbedding
from condiff.networks.layout import layout_of
from condiff.networks.state_space import StateSpace


@dataclass(frozen=True, kw_only=True)
@checked
class GatedSeriesConfig:
    """A :class:`GatedSeries`.

    Args:
        shape: (L, C) of one sample; other lengths are taken too.
        width, depth: channels inside, number of blocks.
        states: of the state space, per channel and direction.
        outputs: targets predicted side by side in dimension 1.
        learned_variance: more outputs, returned as aux ``{"variance": ...}``.
        residual: add the input to the output (each target's).
        conditions: name -> spec; vectors join the time, maps and observations (B, L, C) go into each block.
        time_scale: what times are multiplied by before their sine-cosine embedding.
        checkpoint: recompute activations in the backward pass.
    """

    shape: tuple[int, int]
    width: int = 64
    depth: int = 3
    states: int = 128
    outputs: int = 1
    learned_variance: bool = False
    residual: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    time_scale: float = 1000.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        freeze(self, "shape")
        if min(self.width, self.depth, self.outputs) < 1:
            raise BadValue(f"width, depth and outputs must be at least 1, got {self}")
        layout_of(self.shape, "series")

    def build(self) -> GatedSeries:
        return GatedSeries(self)


class GatedBlock(nn.Module):
    """One block: ``(h, c, maps) -> (h, skip)``, all (B, L, width) but c (B, width) or (B, L, width).

    The last one has nobody to hand ``h`` on to.
    """

    def __init__(self, width: int, states: int, maps: int, last: bool) -> None:
        super().__init__()
        self.told, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.mixer, self.mix = StateSpace(width, states), nn.Linear(width, width)
        self.maps = nn.Linear(maps, width) if maps else None
        self.on = None if last else nn.Linear(width, width)
        self.skip = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor]:
        told = self.told(c)
        u = h + (told[:, None] if told.ndim == 2 else told)
        u = u + self.mix(F.gelu(self.mixer(self.norm(u))))
        if self.maps is not None:
            assert maps is not None
            u = u + self.maps(maps)
        gate = torch.tanh(u) * torch.sigmoid(u)
        return h if self.on is None else h + self.on(gate), self.skip(gate)


@dataclass
class SeriesHidden:
    """Between two layers: activations and the sum of skips (B, L, width), the embedded time, maps and the input."""

    h: Tensor
    skips: Tensor
    c: Tensor
    maps: Tensor | None
    x: Tensor


class GatedSeries(Network):
    """``GatedSeries(shape=(360, 1), width=64, depth=3, states=128)``: see :class:`GatedSeriesConfig`.

    ``net(x, time, cond)``: x (B, L, C), time (B,) or (B, L) -> x's shape, times ``outputs`` in dimension 1.
    """

    any_size = True

    def __init__(self, config: GatedSeriesConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = configured(GatedSeriesConfig, config, fields)
        self.layout = layout_of(config.shape, "series")
        width, channels = config.width, config.shape[1]
        self.bank = ConditionBank(config.conditions, width, tokens=False)
        self.time = TimeEmbedding(width, features=128, scale=config.time_scale)
        self.input = nn.Linear(channels, width)
        self.stack = nn.ModuleList(
            GatedBlock(width, config.states, self.bank.extra_channels, last=i == config.depth - 1)
            for i in range(config.depth)
        )
        self.last = nn.Linear(width, width)
        self.output = zeroed(nn.Linear(width, channels * (config.outputs + config.learned_variance)))

    def start(self, x: Tensor, time: Tensor, cond: Conditions) -> SeriesHidden:
        if time.shape not in (x.shape[:1], x.shape[:2]):
            raise BadValue(f"times of series {tuple(x.shape)} are (B,) or (B, L), got {tuple(time.shape)}")
        told = self.bank(cond, self.layout.channel_first(x), self.layout.channel_first)
        c = self.time(time)
        if told.vector is not None:
            c = c + (told.vector if c.ndim == 2 else told.vector[:, None])
        h = F.relu(self.input(x))
        maps = torch.cat(told.maps, dim=1).mT if told.maps else None
        return SeriesHidden(h, torch.zeros_like(h), F.silu(c), maps, x)

    def layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"stack.{i}", layer) for i, layer in enumerate(self.stack)]

    def step(self, layer: nn.Module, hidden: SeriesHidden) -> None:
        hidden.h, skip = self.run(layer, hidden.h, hidden.c, hidden.maps)
        hidden.skips = hidden.skips + skip

    def head(self, hidden: SeriesHidden) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        parts = self.output(F.relu(self.last(hidden.skips))).split(hidden.x.shape[-1], dim=-1)
        targets = parts[: self.config.outputs]
        out = torch.cat([part + hidden.x if self.config.residual else part for part in targets], dim=1)
        return (out, {"variance": parts[-1]}) if self.config.learned_variance else out
