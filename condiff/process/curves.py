"""More closed-form schedules: sub-VP, the offset cosine, the sigmoid and the geometric variance-exploding one.

Everything is written so that both ends are exact and nothing cancels near them; where a derivative is infinite
at an end (a variance that starts linearly has ``sigma ~ sqrt(t)``), ``sigma_d_sigma`` is the finite product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process.schedule import Schedule, beta_integral, beta_time


@dataclass(frozen=True, kw_only=True)
class SubVP(Schedule):
    """Sub-variance-preserving (Song 2021, eq. 29): ``alpha = exp(-B/2)``, ``sigma = 1 - exp(-B)``, B as in VPLinear."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max < math.inf:
            raise BadValue(f"SubVP needs 0 < beta_min <= beta_max < inf, got {self.beta_min} and {self.beta_max}")

    def _integral(self, t: Tensor) -> Tensor:
        return beta_integral(t, self.beta_min, self.beta_max)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._beta(t) * torch.exp(-self._integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        integral = self._integral(t)
        return -integral - 2.0 * torch.log(-torch.expm1(-integral))

    def time(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2)
        integral = 2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr.double()))
        return beta_time(integral, self.beta_min, self.beta_max)


@dataclass(frozen=True, kw_only=True)
class ClippedCosine(Schedule):
    """``alpha = cos(a t + b)``, ``sigma = sin(a t + b)``: a cosine whose log-SNR runs from ``limit`` to ``-limit``.

    ``-2 log tan(a t + b)`` with ``b = atan(exp(-limit / 2))`` and ``a = pi / 2 - 2 b``: the schedule of progressive
    distillation's models (Salimans & Ho 2022), whose data never vanish and are never without noise.
    """

    limit: float = 20.0

    def __post_init__(self) -> None:
        if not self.limit > 0.0:
            raise BadValue(f"ClippedCosine needs limit > 0, got {self.limit}")

    @property
    def _ends(self) -> tuple[float, float]:
        low = math.atan(math.exp(-0.5 * self.limit))
        return low, 0.5 * math.pi - 2.0 * low

    def alpha(self, t: Tensor) -> Tensor:
        return self.sigma(1.0 - t)

    def sigma(self, t: Tensor) -> Tensor:
        low, width = self._ends
        return torch.sin(low + width * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._ends[1] * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._ends[1] * self.alpha(t)

    def time(self, log_snr: Tensor) -> Tensor:
        low, width = self._ends
        return ((torch.atan(torch.exp(-0.5 * log_snr.double())) - low) / width).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class OffsetCosine(Schedule):
    """The cosine of Nichol & Dhariwal (2021), eq. 17, in continuous time, variance preserving.

    ``alpha = cos(pi/2 (t + offset) / (1 + offset)) / cos(pi/2 offset / (1 + offset))``. It differs from
    :class:`Cosine` by the offset only. Their cap on beta (0.999) belongs to the table of N steps:
    ``Discrete.cosine(steps)``.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0.0 <= self.offset < math.inf:
            raise BadValue(f"OffsetCosine needs offset >= 0, got {self.offset}")

    @property
    def _b(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    # With a = b (1 - t) the cosines are sines: alpha = sin a / sin b, sigma^2 = sin(b - a) sin(b + a) / sin(b)^2,
    # and b + a is pi - b (t + 2 offset).

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._b * (1.0 - t)) / math.sin(self._b)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sin(self._b * t) * torch.sin(self._b * (t + 2.0 * self.offset))) / math.sin(self._b)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._b * torch.cos(self._b * (1.0 - t)) / math.sin(self._b)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)  # inf at t = 0 when there is an offset

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t)

    def time(self, log_snr: Tensor) -> Tensor:
        log_snr = log_snr.double()
        sin_b, cos_b = math.sin(self._b), math.cos(self._b)
        sin_a = sin_b * torch.sqrt(torch.sigmoid(log_snr))
        var = sin_b**2 * torch.sigmoid(-log_snr)  # sin(b)^2 - sin(a)^2
        cos_a = torch.sqrt(cos_b**2 + var)
        sine = var / (sin_b * cos_a + cos_b * sin_a)  # of b - a
        return (torch.atan2(sine, cos_b * cos_a + sin_b * sin_a) / self._b).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Schedule):
    """The sigmoid of Jabri (2022), alg. 1, variance preserving, with ``S`` the logistic function.

    ``alpha^2 = (S(end / tau) - S(u)) / (S(end / tau) - S(start / tau))``, ``u = (start + (end - start) t) / tau``.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not (self.tau > 0.0 and self.start < self.end):
            raise BadValue(f"Sigmoid needs start < end and tau > 0, got {self.start}, {self.end} and {self.tau}")
        if not max(abs(self.start), abs(self.end)) <= 300.0 * self.tau:
            raise BadValue(f"Sigmoid needs |start|, |end| <= 300 tau, got {self.start}, {self.end} and {self.tau}")

    @property
    def _w(self) -> float:
        return (self.end - self.start) / self.tau

    def _half_cosh(self, t: Tensor) -> Tensor:
        return torch.cosh(0.5 * (self.start + (self.end - self.start) * t) / self.tau)

    @property
    def _ends(self) -> tuple[float, float]:
        return math.cosh(0.5 * self.start / self.tau), math.cosh(0.5 * self.end / self.tau)

    # S(x) - S(y) = sinh((x - y) / 2) / (2 cosh(x / 2) cosh(y / 2)) keeps both variances exact near both ends.

    def alpha(self, t: Tensor) -> Tensor:
        share = torch.sinh(0.5 * self._w * (1.0 - t)) / math.sinh(0.5 * self._w)
        return torch.sqrt(share * (self._ends[0] / self._half_cosh(t)))

    def sigma(self, t: Tensor) -> Tensor:
        share = torch.sinh(0.5 * self._w * t) / math.sinh(0.5 * self._w)
        return torch.sqrt(share * (self._ends[1] / self._half_cosh(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.sigma_d_sigma(t) / self.alpha(t)  # -inf at t = 1

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)  # inf at t = 0

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        cosh, (first, last) = self._half_cosh(t), self._ends
        return 0.25 * self._w / math.sinh(0.5 * self._w) * (first / cosh) * (last / cosh)

    def time(self, log_snr: Tensor) -> Tensor:
        # sinh(w (1 - t) / 2) / sinh(w t / 2) = r, solved for t
        first, last = self._ends
        r = torch.exp(log_snr.double() + (math.log(last) - math.log(first)))
        w = self._w
        return (torch.log1p(2.0 * math.sinh(0.5 * w) / (r + math.exp(-0.5 * w))) / w).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class VE(Schedule):
    """Variance exploding, geometric in t (Song 2021): ``alpha = 1``, with ``r = sigma_max / sigma_min``.

    ``clean=True``: ``sigma = sigma_min sqrt(r^(2t) - 1)``, the exact transition of their SDE from t = 0, which is 0
    there; ``sigma(1) = sqrt(sigma_max^2 - sigma_min^2)``. ``clean=False``: ``sigma = sigma_min r^t``, their
    discrete levels; t = 0 then carries noise sigma_min, so that a sample needs a last denoising.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    clean: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise BadValue(f"VE needs 0 < sigma_min < sigma_max < inf, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _log_r(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        if self.clean:
            return self.sigma_min * torch.sqrt(torch.expm1(2.0 * self._log_r * t))
        return self.sigma_min * torch.exp(self._log_r * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)  # inf at t = 0 when clean

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min**2 * self._log_r * torch.exp(2.0 * self._log_r * t)

    def time(self, log_snr: Tensor) -> Tensor:
        if self.clean:
            t = torch.log1p(torch.exp(-log_snr.double()) / self.sigma_min**2) / (2.0 * self._log_r)
        else:
            t = (-0.5 * log_snr.double() - math.log(self.sigma_min)) / self._log_r
        return t.clamp(0.0, 1.0)
