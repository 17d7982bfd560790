"""Decoder heads: from the last features of a network, a token a place, to what is said of a modality."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from condiff.multimodal.modality import Head
from condiff.networks.base import zeroed


class Residual(nn.Module):
    """``x + W2 silu(W1 norm(x))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), zeroed(nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.silu(self.fc1(self.norm(x))))


class PlaceHead(Head):
    """A residual block and a linear layer for every token: what is said lies where the features do.

    Args:
        network: whose features are read.
        shape: of what is said.
    """

    def __init__(self, network: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.block, self.norm = Residual(network.config.width), nn.LayerNorm(network.config.width)
        self.output = zeroed(nn.Linear(network.config.width, network.token_size(shape)))

    def forward(self, features: Tensor, hidden: Any, network: Any) -> Tensor:
        values = self.output(self.norm(self.block(features)))
        return network.arrange(values, hidden, self.shape)


class PooledHead(Head):
    """The mean over all tokens, then an MLP: what is said has no place."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.norm, self.block = nn.LayerNorm(width), Residual(width)
        self.fc1, self.output = nn.Linear(width, width), zeroed(nn.Linear(width, size))

    def forward(self, features: Tensor, hidden: Any, network: Any) -> Tensor:
        pooled = self.norm(self.block(features)).mean(dim=1)
        return self.output(F.silu(self.fc1(pooled)))
