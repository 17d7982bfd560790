"""Weightings: how much an error counts at each noise level, said once and converted exactly.

Given ``x_t`` (and the endpoint), an error of ``x0`` fixes the error of every other quantity. With the row
``(p, ., q)`` of a quantity in the basis (x0, source, noise), and ``x_t = a x0 + ... + s z``::

    error(quantity) = (p s - q a) / s * error(x0)          MSE(quantity) = (p s - q a)^2 / s^2 * MSE(x0)

so that noise-MSE = SNR x0-MSE, v-MSE = (SNR + 1) x0-MSE on a variance-preserving path, and the velocity of a
rectified flow has x0-MSE / t^2. A weighting is a weight ``w`` on the x0-MSE; on another target's MSE it is
``w s^2 / (p s - q a)^2``. Training on any target with one weighting is then the same loss, only the network's
output is another. Weights are stored as ``w s^2``, which is finite where ``w`` is not, and in float64.

With other distances than the squared one the weight multiplies the distance as it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from condiff.errors import BadValue
from condiff.process import Level, algebra
from condiff.process.algebra import Weight
from condiff.process.prediction import row


def _smaller(a: Weight, b: Weight) -> Weight:
    return algebra.where(a < b, a, b)


class Weighting(ABC):
    """Base: subclasses give ``w s^2``, with w the weight on the x0-MSE."""

    @abstractmethod
    def scaled(self, level: Level) -> Weight:
        """``w s^2``, s = noise(t)."""

    def on(self, kind: str, level: Level) -> Weight:
        """The weight on the MSE of the quantity ``kind``."""
        p, _, q = row(kind, level)
        if kind == "score":  # its row is -1 / s: multiply through
            return algebra.divide(self.scaled(level) * level.noise**2, level.data**2)
        det = p * level.noise - q * level.data
        return algebra.divide(self.scaled(level), det * det)


@dataclass(frozen=True)
class UniformWeight(Weighting):
    """1 on whatever is the target: the simple loss of Ho 2020 on noise, flow matching's on velocity."""

    def scaled(self, level: Level) -> Weight:
        raise BadValue("a uniform weighting has no fixed weight on x0: it is 1 on the target")

    def on(self, kind: str, level: Level) -> Weight:
        return 1.0


@dataclass(frozen=True)
class SNR(Weighting):
    """``w = a^2 / s^2``: the noise-MSE, on any target."""

    def scaled(self, level: Level) -> Weight:
        return level.data**2


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """``w = max(SNR, 1)`` (Salimans & Ho 2022, section 4)."""

    def scaled(self, level: Level) -> Weight:
        return -_smaller(-(level.data**2), -(level.noise**2))


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """``w = min(SNR, gamma)`` (Hang 2023, eq. 10)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0.0 < self.gamma < math.inf:
            raise BadValue(f"MinSNR needs gamma > 0, got {self.gamma}")

    def scaled(self, level: Level) -> Weight:
        return _smaller(level.data**2, self.gamma * level.noise**2)


@dataclass(frozen=True, kw_only=True)
class InverseNoise(Weighting):
    """``w = min(1 / s, cap)``: on the absolute error of x0, whose size on a bridge is about that of its noise (BBDM's
    released training, consecutive bridges)."""

    cap: float = 5.0

    def __post_init__(self) -> None:
        if not 0.0 < self.cap < math.inf:
            raise BadValue(f"InverseNoise needs cap > 0, got {self.cap}")

    def scaled(self, level: Level) -> Weight:
        return _smaller(level.noise, self.cap * level.noise**2)


@dataclass(frozen=True, kw_only=True)
class P2(Weighting):
    """``1 / (k + SNR)^gamma`` on the noise-MSE (Choi 2022, eq. 7)."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not (self.k > 0.0 and self.gamma >= 0.0):
            raise BadValue(f"P2 needs k > 0 and gamma >= 0, got {self.k} and {self.gamma}")

    def scaled(self, level: Level) -> Weight:
        a2, s2 = level.data**2, level.noise**2
        return a2 * algebra.divide(s2, self.k * s2 + a2) ** self.gamma


@dataclass(frozen=True, kw_only=True)
class EDMWeight(Weighting):
    """``w = (r^2 + sd^2) / (r sd)^2`` with ``r = s / a`` (Karras 2022, table 1): 1 on the preconditioned output."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < math.inf:
            raise BadValue(f"EDMWeight needs sigma_data > 0, got {self.sigma_data}")

    def scaled(self, level: Level) -> Weight:
        return level.noise**2 / self.sigma_data**2 + level.data**2


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Weighting):
    """``sigmoid(bias - log SNR)`` on the noise-MSE (Kingma & Gao 2023; Hoogeboom 2024).

    Args:
        bias: level below which the weight falls.
        per_log_snr: the papers' weight, per unit of log-SNR: with uniform times it carries ``-d log SNR / dt``.
            Without, it is the weight per drawn time.
    """

    bias: float = 2.0
    per_log_snr: bool = False

    def scaled(self, level: Level) -> Weight:
        a, s = level.data, level.noise
        # sigmoid(b - log(a^2 / s^2)) = s^2 / (s^2 + exp(-b) a^2)
        damped = algebra.divide(s * a, s * s + math.exp(-self.bias) * a * a)
        if not self.per_log_snr:
            return damped * a * s
        return 2.0 * damped * (level.d_noise * a - level.d_data * s)


@dataclass(frozen=True)
class ELBO(Weighting):
    """``w = -d SNR / dt / 2``: with uniform times the loss is the diffusion part of the variational bound, per
    dimension and in nats (Kingma 2021, eq. 17). Infinite at t = 0 on most paths: draw times above it.
    """

    def scaled(self, level: Level) -> Weight:
        a, s = level.data, level.noise
        return algebra.divide(a * (a * level.d_noise - s * level.d_data), s)
