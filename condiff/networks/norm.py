"""Group normalisation with a fused and a plain kernel (see :mod:`condiff.networks.attention`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """In as many groups as divide both ``groups`` and ``channels``.

    torch's fused kernel has no forward-mode derivative for channels-last activations; ``backend = "plain"`` has.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(math.gcd(groups, channels), channels, eps=1e-5)
        self.backend = "sdpa"

    def forward(self, x: Tensor) -> Tensor:
        if self.backend == "sdpa":
            return super().forward(x)
        grouped = x.reshape(x.shape[0], self.num_groups, -1)
        centred = grouped - grouped.mean(dim=-1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.eps)
        per_channel = (-1, *(1,) * (x.ndim - 2))
        return normed.reshape(x.shape) * self.weight.view(per_channel) + self.bias.view(per_channel)
