"""Uniform numbers that are a function of (seed, epoch, index): a counter-based generator, vectorised over rows.

SplitMix64 (Steele, Lea & Flood 2014) as a hash. A row's augmentation then depends neither on the order in
which rows are visited, nor on the batch, nor on which worker reads it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _word(value: int) -> np.ndarray:
    return np.array([value & (2**64 - 1)], dtype=np.uint64)


def uniform(seed: int, epoch: int, index: Tensor, count: int = 1) -> Tensor:
    """``count`` numbers on [0, 1) for each row of ``index`` (B,): float64 (B, count)."""
    state = _mix(_mix(_word(seed)) ^ _word(epoch))
    rows = _mix(state ^ index.cpu().numpy().astype(np.uint64))
    words = _mix(_mix(rows)[:, None] ^ np.arange(count, dtype=np.uint64))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
