"""Schedules: the scalar curves ``alpha(t)``, ``sigma(t)`` of a Gaussian path ``x_t = alpha x0 + sigma z``.

Time runs from 0 (data) to 1 (noise). All curves take and return float64 tensors of any shape and are
differentiable in ``t``; the derivatives ``d_alpha``, ``d_sigma`` are written out, not differenced.

At both ends the curves take their exact limits: ``log_snr`` may be ``+inf`` at 0 and ``-inf`` at 1, and
:meth:`Schedule.time`, its inverse, maps them back. Nothing is clamped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.fields import checked
from condiff.process.algebra import holds


def as_time(t: float | Tensor, where: str = "t") -> Tensor:
    """A time in [0, 1] as a float64 tensor.

    Raises:
        BadValue: when a value lies outside [0, 1] or is not a number.
    """
    out = torch.as_tensor(t, dtype=torch.float64)
    if not holds((out >= 0.0) & (out <= 1.0)):
        raise BadValue(f"{where} must lie in [0, 1] (0 is data, 1 is noise), got {out.min():.6g} .. {out.max():.6g}")
    return out


class Schedule(ABC):
    """Base: four curves and the inverse of the log-SNR."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    def log_snr(self, t: Tensor) -> Tensor:
        """``log(alpha^2 / sigma^2)``, decreasing in t."""
        return 2.0 * (torch.log(self.alpha(t)) - torch.log(self.sigma(t)))

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        """``sigma d_sigma``, half the rate of the variance; finite at ``sigma = 0`` where ``d_sigma`` may not be."""
        return self.sigma(t) * self.d_sigma(t)

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which :meth:`log_snr` takes the given value (clipped to [0, 1] beyond the ends)."""

    def model_time(self, t: Tensor) -> Tensor:
        """The number a released network of this schedule is told: t, the shifted t, or the index of a table."""
        return t

    def network_time(self, t: Tensor) -> Tensor:
        """The same in [0, 1], as networks made here are told: their embeddings are scaled for that range."""
        return self.model_time(t)


def _ratio(log_snr: Tensor) -> Tensor:
    """sigma / alpha."""
    return torch.exp(-0.5 * log_snr)


def beta_integral(t: Tensor, low: float, high: float) -> Tensor:
    """``B = int_0^t beta`` of ``beta = low + (high - low) t``."""
    return low * t + 0.5 * (high - low) * t**2


def beta_time(integral: Tensor, low: float, high: float) -> Tensor:
    """The t with ``beta_integral(t) = integral``, 1 beyond the end; the root is written without cancellation."""
    integral = integral.clamp(max=0.5 * (low + high))
    return (2.0 * integral / (low + torch.sqrt(low**2 + 2.0 * (high - low) * integral))).clamp(max=1.0)


def bisect(schedule: Schedule, log_snr: Tensor) -> Tensor:
    """The inverse of a strictly falling log-SNR on [0, 1] by bisection to the last bit; clipped beyond the ends."""
    low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = schedule.log_snr(middle) > log_snr
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=log_snr.device)
    first, last = schedule.log_snr(ends)
    out = torch.where(log_snr >= first, 0.0, torch.where(log_snr <= last, 1.0, high))
    return torch.where(torch.isnan(log_snr), log_snr, out)


@dataclass(frozen=True, kw_only=True)
class VPLinear(Schedule):
    """Variance preserving with ``beta(t) = beta_min + t (beta_max - beta_min)`` (Ho 2020; Song 2021, eq. 33).

    ``alpha = exp(-B/2)``, ``sigma = sqrt(1 - exp(-B))``, ``B = beta_min t + (beta_max - beta_min) t^2 / 2``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max:
            raise BadValue(f"VPLinear needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def _integral(self, t: Tensor) -> Tensor:
        return beta_integral(t, self.beta_min, self.beta_max)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)  # inf at t = 0

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * torch.exp(-self._integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        integral = self._integral(t)
        return -integral - torch.log(-torch.expm1(-integral))

    def time(self, log_snr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-log_snr.double(), threshold=700.0)
        return beta_time(integral, self.beta_min, self.beta_max)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``: trigonometric, variance preserving.

    ``shift`` moves the log-SNR by ``2 log(shift)`` (Hoogeboom 2023): below 1 for higher resolutions.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise BadValue(f"Cosine needs shift > 0, got {self.shift}")

    def _norm(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The cosine as a sine of 1 - t: exactly 0 at t = 1 (cos(pi / 2) is 6e-17), and to full precision near it.
        c, s = self.shift * torch.sin(0.5 * math.pi * (1.0 - t)), torch.sin(0.5 * math.pi * t)
        return c, s, torch.sqrt(c**2 + s**2)

    def alpha(self, t: Tensor) -> Tensor:
        c, _, n = self._norm(t)
        return c / n

    def sigma(self, t: Tensor) -> Tensor:
        _, s, n = self._norm(t)
        return s / n

    def _d_angle(self, t: Tensor) -> Tensor:
        _, _, n = self._norm(t)
        return 0.5 * math.pi * self.shift / n**2  # d/dt of atan2(sin, shift cos)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._d_angle(t) * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._d_angle(t) * self.alpha(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(self.shift * _ratio(log_snr.double())) * (2.0 / math.pi)


@dataclass(frozen=True, kw_only=True)
class Rectified(Schedule):
    """Rectified flow / conditional OT: ``alpha = 1 - u``, ``sigma = u`` with ``u = shift t / (1 + (shift - 1) t)``.

    ``shift`` is the resolution shift of SD3 and FLUX (Esser 2024, eq. 23): above 1 for higher resolutions.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise BadValue(f"Rectified needs shift > 0, got {self.shift}")

    def _u(self, t: Tensor) -> Tensor:
        return t if self.shift == 1.0 else self.shift * t / self._norm(t)

    def _norm(self, t: Tensor) -> Tensor:
        """``1 + (shift - 1) t``, exactly shift at t = 1."""
        return (1.0 - t) + self.shift * t

    def _d_u(self, t: Tensor) -> Tensor:
        return self.shift / self._norm(t) ** 2

    def alpha(self, t: Tensor) -> Tensor:
        return (1.0 - t) / self._norm(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._u(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._d_u(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._d_u(t)

    def time(self, log_snr: Tensor) -> Tensor:
        u = torch.sigmoid(-0.5 * log_snr.double())
        return (u / (self.shift - (self.shift - 1.0) * u)).clamp(max=1.0)

    def model_time(self, t: Tensor) -> Tensor:
        return self._u(t)


@dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
    """Variance exploding: ``alpha = 1``, ``sigma = sigma_max t^rho``, exactly 0 at t = 0 (Karras 2022).

    With the paper's rho = 7 a uniform grid in t is its noise grid with ``sigma_min = 0``; the grid
    ``Karras(sigma_min=0.002)`` of :mod:`condiff.sampling.grid` is the published one. rho = 1 is ``sigma ~ t``.
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0.0 < self.sigma_max < math.inf and self.rho > 0.0):
            raise BadValue(f"EDM needs 0 < sigma_max < inf and rho > 0, got {self.sigma_max} and {self.rho}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t**self.rho

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * self.rho * t ** (self.rho - 1.0)

    def time(self, log_snr: Tensor) -> Tensor:
        return ((_ratio(log_snr.double()) / self.sigma_max) ** (1.0 / self.rho)).clamp(0.0, 1.0)
