"""Keep schedules: the probability ``keep(t)`` that a token is still there, decreasing in t.

``lost(t) = 1 - keep(t)`` is written out as well, free of cancellation, with its derivative; :meth:`Keep.time` is
the inverse of ``lost``. The rate at which tokens are lost is ``d_lost / keep``. All curves take and return float64
tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.fields import checked


class Keep(ABC):
    """Base: keep, lost, d_lost and the inverse of lost."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    def keep(self, t: Tensor) -> Tensor:
        """Probability that a token is kept until t."""
        return 1.0 - self.lost(t)

    @abstractmethod
    def lost(self, t: Tensor) -> Tensor:
        """``1 - keep(t)``."""

    @abstractmethod
    def d_lost(self, t: Tensor) -> Tensor:
        """d lost / dt."""

    def time(self, lost: Tensor) -> Tensor:
        """The time at which a share ``lost`` is lost.

        Raises:
            Incompatible: when the schedule has no inverse.
        """
        raise Incompatible(f"{self} has no inverse")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise BadValue(f"{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class LogLinear(Keep):
    """``lost = (1 - eps) t``: the integrated rate ``-log keep`` is log-linear (Lou 2024, SEDD; Ou 2025, RADD).

    eps = 0 is exact at t = 1 (everything is lost); released models were trained with eps = 1e-3.
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eps < 1.0:
            raise BadValue(f"LogLinear needs 0 <= eps < 1, got {self.eps}")

    def lost(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) * t

    def d_lost(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1.0 - self.eps)

    def time(self, lost: Tensor) -> Tensor:
        return (lost.double() / (1.0 - self.eps)).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CosineKeep(Keep):
    """``lost = sin(pi t / 2)``: few tokens are revealed at first, more later (Chang 2022, MaskGIT)."""

    def lost(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def d_lost(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * torch.cos(0.5 * math.pi * t)

    def time(self, lost: Tensor) -> Tensor:
        return torch.asin(lost.double().clamp(0.0, 1.0)) * (2.0 / math.pi)


@dataclass(frozen=True, kw_only=True)
class Geometric(Keep):
    """``-log keep = low^(1 - t) high^t``: the integrated rate is geometric (Lou 2024, SEDD).

    A share ``1 - exp(-low)`` is lost right after t = 0.
    """

    low: float = 1e-4
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.low < self.high < math.inf:
            raise BadValue(f"Geometric needs 0 < low < high < inf, got {self.low} and {self.high}")

    def _integral(self, t: Tensor) -> Tensor:
        return torch.exp((1.0 - t) * math.log(self.low) + t * math.log(self.high))

    def keep(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t))

    def lost(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def d_lost(self, t: Tensor) -> Tensor:
        return self._integral(t) * math.log(self.high / self.low) * self.keep(t)

    def time(self, lost: Tensor) -> Tensor:
        integral = -torch.log1p(-lost.double())
        return ((torch.log(integral) - math.log(self.low)) / math.log(self.high / self.low)).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class LinearKeep(Keep):
    """``lost`` linear between two shares: what is lost right after t = 0, and at t = 1."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check_share("start", self.start)
        _check_share("end", self.end)
        if not self.start < self.end:
            raise BadValue(f"LinearKeep needs start < end, got {self.start} and {self.end}")

    def lost(self, t: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * t

    def d_lost(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.end - self.start)

    def time(self, lost: Tensor) -> Tensor:
        return ((lost.double() - self.start) / (self.end - self.start)).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class RatioKeep(Keep):
    """``keep = top.keep / bottom.keep``: what a process keeps of what another one leaves visible.

    Raises:
        BadValue: when the bottom reaches 0, or the ratio exceeds 1 or increases, so that no process has it.
    """

    top: Keep
    bottom: Keep

    def __post_init__(self) -> None:
        t = torch.linspace(0.0, 1.0, 1025, dtype=torch.float64)
        if float(self.bottom.keep(t).min()) <= 0.0:
            raise BadValue(f"the ratio to {self.bottom} isn't defined at t = 1: it keeps nothing there")
        ratio = self.keep(t)
        if not bool((ratio <= 1.0).all() and (ratio.diff() <= 1e-12).all()):
            raise BadValue(
                f"{self.top} / {self.bottom} must decrease from at most 1, got {ratio[0]:.6g} .. {ratio[-1]:.6g}"
            )

    def keep(self, t: Tensor) -> Tensor:
        return self.top.keep(t) / self.bottom.keep(t)

    def lost(self, t: Tensor) -> Tensor:
        return (self.top.lost(t) - self.bottom.lost(t)) / self.bottom.keep(t)

    def d_lost(self, t: Tensor) -> Tensor:
        return (self.top.d_lost(t) - self.keep(t) * self.bottom.d_lost(t)) / self.bottom.keep(t)
