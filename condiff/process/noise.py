"""Noise laws: the distribution of ``z`` in ``x_t = data x0 + source y + noise z``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.random import Source


class NoiseLaw(ABC):
    """Base: how to draw z, and whether the marginal score is ``-E[z | x_t] / noise``."""

    @abstractmethod
    def sample(self, rng: Source, shape: Sequence[int], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        """Draw z; the first dimension is the batch."""

    @property
    def gaussian(self) -> bool:
        """True when scores, posteriors and SDEs of Gaussian noise apply."""
        return False


@dataclass(frozen=True)
class Normal(NoiseLaw):
    """Standard normal noise."""

    def sample(self, rng: Source, shape: Sequence[int], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        return rng.normal(shape, dtype, device)

    @property
    def gaussian(self) -> bool:
        return True
