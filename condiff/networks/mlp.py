"""A residual MLP for vectors: toys, tabular data, and anything small enough to be flattened."""

from __future__ import annotations

import math
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
from condiff.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
@checked
class MLPConfig:
    """An :class:`MLP`.

    Args:
        shape: of one sample; it is flattened inside.
        width, depth: of the residual blocks.
        outputs: targets predicted side by side in dimension 1.
        learned_variance: more outputs, returned as aux ``{"variance": ...}``.
        conditions: name -> spec (labels, scalars, vectors; maps are given flattened with the state).
        time_scale: what times are multiplied by before their sine-cosine embedding.
        checkpoint: recompute activations in the backward pass.
    """

    shape: tuple[int, ...]
    width: int = 128
    depth: int = 3
    outputs: int = 1
    learned_variance: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)
    time_scale: float = 1000.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        freeze(self, "shape")
        if min(self.width, self.depth, self.outputs, *self.shape) < 1:
            raise BadValue(f"width, depth, outputs and shape must be at least 1, got {self}")

    def build(self) -> MLP:
        return MLP(self)


@dataclass
class MLPHidden:
    """Between two layers: activations (B, width) and the embedded time and conditions (B, width)."""

    x: Tensor
    c: Tensor
    shape: tuple[int, ...]


class MLPBlock(nn.Module):
    """``x + W2 silu(W1 ((1 + scale(c)) norm(x) + shift(c)))``, zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), zeroed(nn.Linear(2 * width, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulation(c).chunk(2, dim=-1)
        h = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1.0 + scale)
        return x + self.fc2(F.silu(self.fc1(h)))


class MLP(Network):
    """``MLP(shape=(2,), width=128, depth=3, conditions={"label": Label(4)})``: see :class:`MLPConfig`.

    ``net(x, time, cond)``: x (B, *shape), time (B,) -> x's shape, times ``outputs`` in dimension 1.
    """

    def __init__(self, config: MLPConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = configured(MLPConfig, config, fields)
        self.layout = Layout("vector", config.shape)
        size = 1
        for n in config.shape:
            size *= n
        self.size = size
        self.bank = ConditionBank(config.conditions, config.width, tokens=False)
        self.time = TimeEmbedding(config.width, scale=config.time_scale)
        self.input = nn.Linear(size + self.bank.extra_channels, config.width)
        self.stack = nn.ModuleList(MLPBlock(config.width) for _ in range(config.depth))
        self.output = zeroed(nn.Linear(config.width, size * (config.outputs + config.learned_variance)))

    def start(self, x: Tensor, time: Tensor, cond: Conditions) -> MLPHidden:
        if time.ndim != 1:
            raise BadValue(f"an MLP is told one time per row, got times of shape {tuple(time.shape)}")
        flat = x.flatten(1)
        told = self.bank(cond, flat, lambda value: value.flatten(1))
        c = self.time(time) if told.vector is None else self.time(time) + told.vector
        h = self.input(torch.cat([flat, *told.maps], dim=1) if told.maps else flat)
        return MLPHidden(h, F.silu(c), tuple(x.shape[1:]))

    def layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"stack.{i}", layer) for i, layer in enumerate(self.stack)]

    def step(self, layer: nn.Module, hidden: MLPHidden) -> None:
        hidden.x = self.run(layer, hidden.x, hidden.c)

    def head(self, hidden: MLPHidden) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        out = self.output(F.silu(F.layer_norm(hidden.x, hidden.x.shape[-1:])))
        first, *rest = hidden.shape
        shape = (self.config.outputs * first, *rest)
        if not self.config.learned_variance:
            return out.unflatten(1, shape)
        values, variance = out.split([out.shape[1] - self.size, self.size], dim=1)
        return values.unflatten(1, shape), {"variance": variance.unflatten(1, hidden.shape)}

    def features(self, hidden: MLPHidden) -> Tensor:
        """What the output layer reads, (B, 1, width): one token."""
        return hidden.x[:, None]

    def arrange(self, values: Tensor, hidden: MLPHidden, shape: tuple[int, ...]) -> Tensor:
        """(B, 1, :meth:`token_size`) -> (B, *shape)."""
        return values[:, 0].unflatten(1, shape)

    def token_size(self, shape: tuple[int, ...]) -> int:
        """Numbers of a sample of that shape."""
        return math.prod(shape)
