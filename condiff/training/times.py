"""Which times a model is trained at.

Every law here is the image of a uniform number: ``t = law(u)``. So any of them can be stratified over the batch,
and a shard of a batch sees the numbers of the whole one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process import Process
from condiff.random import Source


class Times(ABC):
    """Base: ``sample(process, shape, rng)`` gives float64 times for a state of the given shape."""

    @abstractmethod
    def law(self, u: Tensor, process: Process) -> Tensor:
        """Uniform numbers on [0, 1) to times in [0, 1]."""

    def uniform(self, shape: Sequence[int], rng: Source, device: Any = "cpu") -> Tensor:
        """The uniform numbers behind the times, (B,)."""
        return rng.uniform(tuple(shape[:1]), torch.float64, device)

    def sample(self, process: Process, shape: Sequence[int], rng: Source, device: Any = "cpu") -> Tensor:
        """Times for a state of ``shape`` (B, ...): (B,) unless the law says otherwise."""
        return self.law(self.uniform(shape, rng, device), process)


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u)


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """``t ~ U[low, high]``."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise BadValue(f"times lie in [0, 1]: need 0 <= low < high <= 1, got {self.low} and {self.high}")

    def law(self, u: Tensor, process: Process) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Times):
    """``t = sigmoid(mean + std n)``, n standard normal (Esser 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise BadValue(f"LogitNormal needs a finite mean and std > 0, got {self.mean} and {self.std}")

    def law(self, u: Tensor, process: Process) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal(u))


@dataclass(frozen=True, kw_only=True)
class EDMLogNormal(Times):
    """``log(noise / data) = mean + std n`` (Karras 2022, table 1: -1.2 and 1.2), for any process with a log-SNR.

    What lies beyond the process's noisiest level is its last time, t = 1.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise BadValue(f"EDMLogNormal needs a finite mean and std > 0, got {self.mean} and {self.std}")

    def law(self, u: Tensor, process: Process) -> Tensor:
        return process.time(-2.0 * (self.mean + self.std * _normal(u)))


@dataclass(frozen=True, kw_only=True)
class DiscreteTimes(Times):
    """Uniform over a grid: ``grid`` lists the times, or is the number N of ``i / N``, i = 1 ... N (Ho 2020)."""

    grid: int | tuple[float, ...] = 1000

    def __post_init__(self) -> None:
        bad = self.grid < 1 if isinstance(self.grid, int) else not self.grid or not all(0 <= t <= 1 for t in self.grid)
        if bad:
            raise BadValue(f"a grid of times is a number >= 1, or a list of times in [0, 1], got {self.grid}")

    def law(self, u: Tensor, process: Process) -> Tensor:
        if isinstance(self.grid, int):
            return (torch.floor(u * self.grid) + 1.0).clamp_(max=self.grid) / self.grid
        times = torch.tensor(self.grid, dtype=torch.float64, device=u.device)
        return times[(u * len(times)).long().clamp_(max=len(times) - 1)]


@dataclass(frozen=True, kw_only=True)
class Stratified(Times):
    """One time in each of B equally likely parts of ``base``: row i takes ``u = (i + U) / B`` of the whole batch.

    Unbiased, with far less variance of a batch's mean loss (Kingma 2021, appendix I.1). Rows keep their part, so
    the order of the data must be random, as it is in training.
    """

    base: Times = field(default_factory=UniformTimes)

    def __post_init__(self) -> None:
        if isinstance(self.base, PerFrame):
            raise Incompatible("Stratified(PerFrame(...)): frames of a row need independent times; use PerFrame alone")

    def law(self, u: Tensor, process: Process) -> Tensor:
        return self.base.law(u, process)

    def uniform(self, shape: Sequence[int], rng: Source, device: Any = "cpu") -> Tensor:
        u = rng.uniform(tuple(shape[:1]), torch.float64, device)
        first, total = rng.place(shape[0])
        return (torch.arange(first, first + shape[0], dtype=torch.float64, device=u.device) + u) / total


@dataclass(frozen=True, kw_only=True)
class PerFrame(Times):
    """An independent time for each frame: (B, F), from a state (B, F, ...) (diffusion forcing, Chen 2024)."""

    base: Times = field(default_factory=UniformTimes)

    def __post_init__(self) -> None:
        if isinstance(self.base, Stratified | PerFrame):
            raise Incompatible(f"PerFrame({self.base}): frames of a row need independent times; give a plain law")

    def law(self, u: Tensor, process: Process) -> Tensor:
        return self.base.law(u, process)

    def uniform(self, shape: Sequence[int], rng: Source, device: Any = "cpu") -> Tensor:
        if len(shape) < 2:
            raise BadValue(f"times per frame need a state (B, F, ...), got {tuple(shape)}")
        return rng.uniform(tuple(shape[:2]), torch.float64, device)
