"""Grids in ``sigma = noise / data``, mapped to times by the process: Karras, log-uniform, beta.

``steps`` points run from ``sigma_max`` to ``sigma_min``, then one step leads to the clean level (``last="clean"``);
or ``steps + 1`` points do, and the last is ``sigma_min`` itself (``last="sigma_min"``). Without ends given,
sigma_max is the process's own at t = 1, and sigma_min that of the first tabulated level, or 0.002 where there is no
table.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, require_extra, unknown
from condiff.process.gaussian import Process
from condiff.process.table import table_size
from condiff.sampling.grid import Grid, check_start_time, with_clean_end

LAST = ("clean", "sigma_min")
SIGMA_MIN = 0.002


@dataclass(frozen=True)
class Sigmas(Grid):
    """Base: a rule :meth:`points` for the noise levels between two ends."""

    sigma_min: float | None = None
    sigma_max: float | None = None
    last: str = "clean"

    def __post_init__(self) -> None:
        low, high = self.sigma_min, self.sigma_max
        if not ((low is None or 0.0 < low < math.inf) and (high is None or 0.0 < high < math.inf)):
            raise BadValue(f"sigmas must be positive and finite, got sigma_min={low}, sigma_max={high}")
        if low is not None and high is not None and not low < high:
            raise BadValue(f"sigma_min must be below sigma_max, got {low} and {high}")
        if self.last not in LAST:
            raise unknown("last level", self.last, LAST)

    @abstractmethod
    def points(self, low: float, high: float, u: Tensor) -> Tensor:
        """The noise levels at ``u`` from 0 (high) to 1 (low)."""

    def sigmas(self, process: Process, steps: int) -> Tensor:
        """The noise levels of the grid, float64 (steps + 1,), the clean level as 0."""
        low, high = self._ends(process)
        count = steps if self.last == "clean" else steps + 1
        points = self.points(low, high, torch.linspace(0.0, 1.0, count, dtype=torch.float64))
        return with_clean_end(points) if self.last == "clean" else points

    def times(self, process: Process, steps: int) -> Tensor:
        sigmas = self.sigmas(process, steps)
        times = process.time(-2.0 * torch.log(sigmas))
        return torch.where(sigmas == 0.0, 0.0, times)

    def starting(self, start: float, process: Process) -> Sigmas:
        return replace(self, sigma_max=_sigma(process, check_start_time(start)))

    def _ends(self, process: Process) -> tuple[float, float]:
        top = _sigma(process, 1.0)
        high = top if self.sigma_max is None else self.sigma_max
        low = _lowest(process) if self.sigma_min is None else self.sigma_min
        if not math.isfinite(high):
            raise BadValue(f"sigma is infinite at t = 1 of {process}: give {type(self).__name__}(sigma_max=...)")
        if not (low < high and high <= top * (1.0 + 1e-9)):
            raise BadValue(f"the sigmas {low} .. {high} of the grid don't lie in those of {process}, up to {top}")
        return low, high


def _sigma(process: Process, t: float) -> float:
    """
    Raises:
        Incompatible: tokens, which have no noise.
    """
    if not isinstance(process, Process):
        raise Incompatible(f"a grid of noise levels is for continuous states, not for {process}: take Uniform()")
    level = process.at(t)
    return float(level.noise / level.data) if level.data else math.inf


def _lowest(process: Process) -> float:
    steps = table_size(process)
    return SIGMA_MIN if steps is None else _sigma(process, 1.0 / steps)


@dataclass(frozen=True)
class Karras(Sigmas):
    """``sigma^(1/rho)`` evenly spaced (Karras 2022, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rho > 0.0:
            raise BadValue(f"rho must be > 0, got {self.rho}")

    def points(self, low: float, high: float, u: Tensor) -> Tensor:
        a, b = high ** (1.0 / self.rho), low ** (1.0 / self.rho)
        return (a + u * (b - a)) ** self.rho


@dataclass(frozen=True)
class UniformLogSNR(Sigmas):
    """Evenly spaced in the log-SNR (DPM-Solver; the "exponential" sigmas of k-diffusion)."""

    def points(self, low: float, high: float, u: Tensor) -> Tensor:
        return torch.exp(math.log(high) + u * (math.log(low) - math.log(high)))


@dataclass(frozen=True)
class BetaSigmas(Sigmas):
    """Quantiles of a Beta(alpha, beta) law between the ends: dense at both (Lee 2024, 2407.12173). Needs SciPy."""

    alpha: float = 0.6
    beta: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.alpha > 0.0 and self.beta > 0.0):
            raise BadValue(f"BetaSigmas needs alpha > 0 and beta > 0, got {self.alpha} and {self.beta}")

    def points(self, low: float, high: float, u: Tensor) -> Tensor:
        stats = require_extra("scipy.stats", "metrics")
        quantiles = torch.as_tensor(stats.beta.ppf(1.0 - u.numpy(), self.alpha, self.beta), dtype=torch.float64)
        return low + quantiles * (high - low)
