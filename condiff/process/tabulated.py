"""Tabulated: a schedule through given values of alpha and sigma (kinetic-optimal paths, learned curves)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process.schedule import Schedule, bisect


def monotone_slopes(times: Tensor, values: Tensor) -> Tensor:
    """Slopes at the nodes of the shape-preserving cubic (PCHIP; Fritsch & Butland 1984), (N,).

    Inside: the weighted harmonic mean of the neighbouring secants, 0 where they differ in sign; at the ends the
    three-point formula, limited so that no overshoot arises.
    """
    h, secant = times.diff(), values.diff() / times.diff()
    if h.numel() == 1:
        return secant.repeat(2)
    before, after = secant[:-1], secant[1:]
    w1, w2 = 2.0 * h[1:] + h[:-1], h[1:] + 2.0 * h[:-1]
    same = before * after > 0.0
    safe_before, safe_after = torch.where(same, before, 1.0), torch.where(same, after, 1.0)
    inside = torch.where(same, (w1 + w2) / (w1 / safe_before + w2 / safe_after), 0.0)
    ends = [_end_slope(h[0], h[1], secant[0], secant[1]), _end_slope(h[-1], h[-2], secant[-1], secant[-2])]
    return torch.cat([ends[0][None], inside, ends[1][None]])


def _end_slope(h0: Tensor, h1: Tensor, s0: Tensor, s1: Tensor) -> Tensor:
    slope = ((2.0 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    if slope * s0 <= 0.0:
        return torch.zeros_like(slope)
    if s0 * s1 <= 0.0 and abs(slope) > 3.0 * abs(s0):
        return 3.0 * s0
    return slope


class _Curve(NamedTuple):
    """A cubic Hermite interpolant: nodes, values and slopes."""

    times: Tensor
    values: Tensor
    slopes: Tensor

    def to(self, device: torch.device) -> _Curve:
        return _Curve(*(x.to(device) for x in self))

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index and length of the piece (a node belongs to the piece before it), the fractions from its two ends."""
        k = (torch.searchsorted(self.times, t.detach().contiguous()) - 1).clamp(0, len(self.times) - 2)
        left, right = self.times[k], self.times[k + 1]
        h = right - left
        return k, h, (t - left) / h, (right - t) / h

    def value(self, t: Tensor) -> Tensor:
        k, h, u, v = self._piece(t)
        ends = v * v * (1.0 + 2.0 * u) * self.values[k] + u * u * (1.0 + 2.0 * v) * self.values[k + 1]
        return ends + h * u * v * (v * self.slopes[k] - u * self.slopes[k + 1])

    def slope(self, t: Tensor) -> Tensor:
        k, h, u, v = self._piece(t)
        rise = 6.0 * u * v * (self.values[k + 1] - self.values[k]) / h
        return rise + v * (v - 2.0 * u) * self.slopes[k] + u * (u - 2.0 * v) * self.slopes[k + 1]

    def integral(self, t: Tensor) -> Tensor:
        """From the first node to t."""
        whole = self.times.diff()
        whole = 0.5 * whole * (self.values[:-1] + self.values[1:]) - whole**2 * self.slopes.diff() / 12.0
        before = torch.cat([torch.zeros_like(whole[:1]), whole.cumsum(0)])
        k, h, u, _ = self._piece(t)
        ends = u * (1.0 - u**2 * (1.0 - 0.5 * u)) * self.values[k] + u**3 * (1.0 - 0.5 * u) * self.values[k + 1]
        bend = (
            u**2 * (0.5 - u * (2.0 / 3.0 - 0.25 * u)) * self.slopes[k]
            - u**3 * (1.0 / 3.0 - 0.25 * u) * self.slopes[k + 1]
        )
        return before[k] + h * (ends + h * bend)


def monotone_curve(times: Tensor, values: Tensor) -> _Curve:
    """The shape-preserving cubic through values (N,) at rising times (N,): ``.value``, ``.slope`` and ``.integral``."""
    return _Curve(times, values, monotone_slopes(times, values))


@dataclass(frozen=True, kw_only=True)
class Tabulated(Schedule):
    """Cubic Hermite curves through tables of alpha and sigma on a grid of times from 0 to 1.

    The derivatives are those of the same cubics. Slopes at the nodes are given, or monotone (PCHIP), so that a
    table that falls gives a curve that falls. The log-SNR must fall strictly.

    Args:
        times: 0 = t_0 < ... < t_n = 1.
        alphas, sigmas: values there, >= 0.
        d_alphas, d_sigmas: slopes there, finite; monotone ones when absent.

    Raises:
        BadValue: tables of different lengths, times that don't run from 0 to 1, a log-SNR that doesn't fall.
    """

    times: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    d_alphas: tuple[float, ...] | None = None
    d_sigmas: tuple[float, ...] | None = None
    _curves: dict[torch.device, tuple[_Curve, _Curve]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("times", "alphas", "sigmas", "d_alphas", "d_sigmas"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _floats(name, getattr(self, name), len(self.times)))
        if not (self.times[0] == 0.0 and self.times[-1] == 1.0 and all(a < b for a, b in pairwise(self.times))):
            raise BadValue(f"times must rise strictly from 0 to 1, got {self.times[0]} .. {self.times[-1]}")
        if min(*self.alphas, *self.sigmas) < 0.0:
            raise BadValue("alphas and sigmas must be >= 0")
        times = torch.tensor(self.times, dtype=torch.float64)
        self._curves[times.device] = (
            _curve(times, self.alphas, self.d_alphas),
            _curve(times, self.sigmas, self.d_sigmas),
        )
        self._check_falls(times)

    def _check_falls(self, times: Tensor) -> None:
        """At the nodes and at 7 points between each two."""
        part = torch.arange(8, dtype=torch.float64) / 8
        fine = torch.cat([(times[:-1, None] + times.diff()[:, None] * part).flatten(), times[-1:]])
        falls = self.log_snr(fine).diff() < 0.0  # also false for NaN, where both curves vanish
        if not bool(falls.all()):
            where = float(fine[:-1][~falls][0])
            raise BadValue(f"the log-SNR of the table must fall strictly, it doesn't near t = {where:.6g}")

    def _on(self, t: Tensor) -> tuple[_Curve, _Curve]:
        if t.device not in self._curves:
            alpha, sigma = self._curves[torch.device("cpu")]
            self._curves[t.device] = (alpha.to(t.device), sigma.to(t.device))
        return self._curves[t.device]

    def alpha(self, t: Tensor) -> Tensor:
        return self._on(t)[0].value(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._on(t)[1].value(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return self._on(t)[0].slope(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._on(t)[1].slope(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return bisect(self, log_snr.double())


def _curve(times: Tensor, values: Sequence[float], slopes: Sequence[float] | None) -> _Curve:
    y = torch.tensor(values, dtype=torch.float64)
    m = monotone_slopes(times, y) if slopes is None else torch.tensor(slopes, dtype=torch.float64)
    return _Curve(times, y, m)


def _floats(name: str, values: Sequence[float] | Tensor, length: int) -> tuple[float, ...]:
    out = tuple(float(v) for v in values)
    if len(out) != length or length < 2:
        raise BadValue(f"{name} must have as many entries as times, at least two, got {len(out)} for {length} times")
    if not all(math.isfinite(v) for v in out):
        raise BadValue(f"{name} must be finite")
    return out
