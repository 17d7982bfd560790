"""Two clocks: how fast residual and noise come in (RDDM, Liu 2023, arXiv 2308.13712), together or one after the other.

:class:`Ramps` are the paper's schedules of the residual's share A and the noise B; :class:`Clocks` lets the two of any
schedule run apart, along a list of pairs of times.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, unknown
from condiff.process.schedule import Schedule, bisect

RAMPS = ("decreased", "increased", "average", "normal")
_OPPOSITE = {"decreased": "increased", "increased": "decreased"}


@dataclass(frozen=True, kw_only=True)
class Ramps(Schedule):
    """RDDM's two clocks: ``alpha = 1 - A`` and ``sigma = B``, with A and ``B^2 / variance`` going from 0 to 1.

    Both are sums of step sizes that fall (``"decreased"``), rise (``"increased"``), are equal (``"average"``), or
    follow the normal density on [-3, 3] (``"normal"``).

    * With ``steps=T`` the values at ``t = i / T`` are the paper's sums of T sizes, by default of
      ``2 (T - i + 1) / (T (T + 1))`` for A and of ``2 i / (T (T + 1))`` for B^2. Between the nodes these two are the
      same polynomials, the others straight lines.
    * ``steps=None`` is the limit of many steps: ``2 t - t^2`` and ``t^2``.

    Args:
        residual, noise: how the sizes go, one of ``RAMPS``.
        variance: ``B^2`` at t = 1, ``sum_scale`` of the released code: 1 for generation, 0.01 for restoration.
        steps: T, or None.
        residual_power, noise_power: sizes ``x^p`` that rise over x = 0 ... 1 (or fall), for "increased" and
            "decreased". With ``steps`` the first size is then 0: no noise at t = 1 / T, where what divides by the noise
            has no value. p = 1 is not the default, whose first size isn't 0, but has its limit.
    """

    residual: str = "decreased"
    noise: str = "increased"
    variance: float = 1.0
    steps: int | None = None
    residual_power: float | None = None
    noise_power: float | None = None

    def __post_init__(self) -> None:
        for name, power in ((self.residual, self.residual_power), (self.noise, self.noise_power)):
            if name not in RAMPS:
                raise unknown("ramp", name, RAMPS)
            if power is not None and (power <= 0.0 or name not in _OPPOSITE):
                raise BadValue(f"a power > 0 belongs to 'increased' or 'decreased', got {power} for {name!r}")
        if not 0.0 < self.variance < math.inf:
            raise BadValue(f"Ramps needs variance > 0, got {self.variance}")
        if self.steps is not None and self.steps < (1 if self._smooth else 2):
            raise BadValue(f"Ramps needs steps >= 1, and 2 for powers and the normal density, got {self.steps}")

    @property
    def _smooth(self) -> bool:
        powers = self.residual_power is None and self.noise_power is None
        return powers and "normal" not in (self.residual, self.noise)

    def alpha(self, t: Tensor) -> Tensor:
        # 1 - A is the opposite ramp, run back from t = 1: exact near both ends.
        return _ramp(_OPPOSITE.get(self.residual, self.residual), self.residual_power, self.steps, 1.0 - t)[0]

    def d_alpha(self, t: Tensor) -> Tensor:
        return -_ramp(self.residual, self.residual_power, self.steps, t)[1]

    @property
    def _even(self) -> bool:
        return (self.noise, self.noise_power, self.steps) == ("increased", None, None)

    def sigma(self, t: Tensor) -> Tensor:
        if self._even:
            return math.sqrt(self.variance) * t
        return torch.sqrt(self.variance * _ramp(self.noise, self.noise_power, self.steps, t)[0])

    def d_sigma(self, t: Tensor) -> Tensor:
        if self._even:
            return math.sqrt(self.variance) * torch.ones_like(t)
        rate = self.sigma_d_sigma(t)
        return torch.where(rate == 0.0, 0.0, rate / self.sigma(t))  # inf at t = 0 unless the noise begins slowly

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * self.variance * _ramp(self.noise, self.noise_power, self.steps, t)[1]

    def time(self, log_snr: Tensor) -> Tensor:
        return bisect(self, log_snr.double())


def _ramp(kind: str, power: float | None, steps: int | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of sizes up to t, and its derivative."""
    if kind == "average":
        return t, torch.ones_like(t)
    if power is None and kind != "normal":
        e = 0.0 if steps is None else 1.0 / steps
        if kind == "increased":
            return t * (t + e) / (1.0 + e), (2.0 * t + e) / (1.0 + e)
        return t * (2.0 - t + e) / (1.0 + e), (2.0 - 2.0 * t + e) / (1.0 + e)
    if steps is not None:
        return _lines(kind, power, steps, t)
    if kind == "normal":
        scale = math.erf(3.0 / math.sqrt(2.0))
        value = 0.5 + 0.5 * torch.erf((6.0 * t - 3.0) / math.sqrt(2.0)) / scale
        return value, 6.0 * torch.exp(-0.5 * (6.0 * t - 3.0) ** 2) / math.sqrt(2.0 * math.pi) / scale
    assert power is not None
    if kind == "increased":
        return t ** (power + 1.0), (power + 1.0) * t**power
    return -torch.expm1((power + 1.0) * torch.log1p(-t)), (power + 1.0) * (1.0 - t) ** power


@functools.lru_cache(maxsize=32)
def _sums(kind: str, power: float | None, steps: int) -> Tensor:
    """Sums of the first i sizes, i = 0 ... steps, float64; exactly 0 and 1 at the ends."""
    if kind == "normal":
        sizes = torch.exp(-0.5 * torch.linspace(-3.0, 3.0, steps, dtype=torch.float64) ** 2)
    else:
        assert power is not None
        x = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
        sizes = (x if kind == "increased" else x.flip(0)) ** power
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), sizes.cumsum(0)])
    return sums / sums[-1]


def _lines(kind: str, power: float | None, steps: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """Straight lines through the sums; a node belongs to the piece before it."""
    table = _sums(kind, power, steps).to(t.device)
    x = t * steps
    x = x + torch.where((x.round() - x).abs() < 1e-9, x.round() - x, 0.0).detach()  # i / T * T is not always i
    left = (torch.ceil(x.detach()) - 1.0).clamp(0, steps - 1).long()
    low, high = table[left], table[left + 1]
    u = x - left
    return torch.where(u == 1.0, high, low + u * (high - low)), (high - low) * steps


@dataclass(frozen=True, kw_only=True)
class Clocks(Schedule):
    """A schedule whose alpha and sigma have a time each: ``alpha(t) = base.alpha(a)``, ``sigma(t) = base.sigma(b)``.

    The pair (a, b) runs through a list of pairs from (0, 0) to (1, 1), in straight lines and evenly in t, so that a
    uniform grid with as many steps as there are lines visits these pairs. With a residual process this says what is
    removed first (RDDM's partially path-independent generation), and with any list of pairs how residual and noise
    alternate. The log-SNR need not fall, so it has no inverse.

    Args:
        base: the schedule with one time.
        residual: times a of alpha, from 0 to 1, never falling.
        noise: times b of sigma, as many.

    Example:
        >>> Residual(schedule=Clocks.residual_first(Ramps())).at(0.5).noise  # all noise, no residual
        1.0
    """

    base: Schedule = field(default_factory=Ramps)
    residual: tuple[float, ...] = (0.0, 1.0)
    noise: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("residual", "noise"):
            times = tuple(float(x) for x in getattr(self, name))
            if len(times) < 2 or times[0] != 0.0 or times[-1] != 1.0 or not all(a <= b for a, b in pairwise(times)):
                raise BadValue(f"{name} is a list of times from 0 to 1 that never fall, got {times}")
            object.__setattr__(self, name, times)
        if len(self.residual) != len(self.noise):
            raise BadValue(f"{len(self.residual)} times of residual and {len(self.noise)} of noise don't make pairs")

    @classmethod
    def residual_first(cls, base: Schedule) -> Clocks:
        """Sampling removes all residual, then all noise."""
        return cls(base=base, residual=(0.0, 0.0, 1.0), noise=(0.0, 1.0, 1.0))

    @classmethod
    def noise_first(cls, base: Schedule) -> Clocks:
        """Sampling removes all noise, then all residual."""
        return cls(base=base, residual=(0.0, 1.0, 1.0), noise=(0.0, 0.0, 1.0))

    def _clock(self, times: tuple[float, ...], t: Tensor) -> tuple[Tensor, Tensor]:
        """The clock's time and its rate; a corner belongs to the piece before it."""
        pieces, nodes = len(times) - 1, torch.tensor(times, dtype=torch.float64, device=t.device)
        x = t * pieces
        left = (torch.ceil(x.detach()) - 1.0).clamp(0, pieces - 1).long()
        low, high, u = nodes[left], nodes[left + 1], x - left
        return low + u * (high - low), (high - low) * pieces

    def _slope(self, times: tuple[float, ...], curve, t: Tensor) -> Tensor:
        at, rate = self._clock(times, t)
        # A clock that stands still has no slope, also where the curve's own is infinite.
        return torch.where(rate == 0.0, 0.0, curve(at) * rate)

    def alpha(self, t: Tensor) -> Tensor:
        return self.base.alpha(self._clock(self.residual, t)[0])

    def d_alpha(self, t: Tensor) -> Tensor:
        return self._slope(self.residual, self.base.d_alpha, t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.base.sigma(self._clock(self.noise, t)[0])

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._slope(self.noise, self.base.d_sigma, t)

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return self._slope(self.noise, self.base.sigma_d_sigma, t)

    def time(self, log_snr: Tensor) -> Tensor:
        raise Incompatible(f"{self} has no inverse of its log-SNR, which need not fall; use a grid in t")
