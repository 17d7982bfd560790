"""Processes with an endpoint: ``x_t = data(t) x0 + source(t) y + noise(t) z`` with a given ``y``.

Bridges and interpolants lead from data at t = 0 to ``y`` at t = 1; the residual process (RDDM) to ``y`` plus noise.
Papers with the other direction of time are converted here: a stochastic interpolant's target is our data.

Where the noise vanishes at both ends, ``d_noise`` may be infinite there (a Brownian bridge); ``noise_d_noise``, the
``gamma gamma'`` of interpolants, is finite everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.algebra import Weight
from condiff.process.gaussian import Curves, Process, evaluate
from condiff.process.level import Level
from condiff.process.noise import NoiseLaw, Normal
from condiff.process.ramps import Ramps
from condiff.process.schedule import Schedule
from condiff.process.table import Discrete

Curve = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # a curve and its derivative


@dataclass(frozen=True, kw_only=True)
class Endpoint(Process):
    """The general process with an endpoint, from three curves, each with its derivative.

    It has the kernels of a Markov process given y (``ratio = data_t / data_s``) where they exist. Functions can't be
    stored in a configuration; :class:`Bridge`, :class:`Interpolant` and :class:`Residual` can.

    Example:
        >>> line = Endpoint(data=(lambda t: 1 - t, lambda t: -torch.ones_like(t)),
        ...                 source=(lambda t: t, torch.ones_like), noise=(lambda t: 0.1 * t, lambda t: 0.1 + 0 * t))
        >>> line.at(0.25).source
        0.25
    """

    data: Curve
    source: Curve
    noise: Curve
    noise_law: NoiseLaw = field(default_factory=Normal)

    @property
    def has_source(self) -> bool:
        return True

    def curves(self, t: Tensor) -> Curves:
        values, slopes = zip(*((f(t), d(t)) for f, d in (self.data, self.source, self.noise)), strict=True)
        return (*values, *slopes)


@dataclass(frozen=True, kw_only=True)
class Bridge(Process):
    """The Brownian bridge from data to y (BBDM, Li 2023): ``x_t = (1 - t) x0 + t y + sqrt(variance t (1 - t)) z``.

    Its kernels are those of Brownian motion of the given variance per unit of time, pinned at y. Given x_t and x0,
    what comes before t doesn't depend on y: ``x_s ~ N(x0 + s / t (x_t - x0), variance s (t - s) / t)``. So ancestral
    steps (:class:`~condiff.sampling.DDPM`) run without knowing y once the start is given.

    Args:
        variance: per unit of time.
        steps: of a table of numbered levels, index i at ``t = margin + (1 - 2 margin) i / (steps - 1)``.
        margin: how far the table stays from both ends.
    """

    variance: float = 1.0
    noise_law: NoiseLaw = field(default_factory=Normal)
    steps: int | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.variance < math.inf:
            raise BadValue(f"Bridge needs variance > 0, got {self.variance}; without noise it is Interpolant('linear')")
        if self.steps is not None and self.steps < 2:
            raise BadValue(f"a bridge's table needs steps >= 2, got {self.steps}")
        if not 0.0 <= self.margin < 0.5:
            raise BadValue(f"margin must lie in [0, 0.5), got {self.margin}")

    @classmethod
    def bbdm(cls, steps: int = 1000, max_variance: float = 1.0, margin: float = 1e-3) -> Bridge:
        """BBDM's table: ``m_i = linspace(0.001, 0.999)`` and variance ``2 (m - m^2) max_variance``."""
        return cls(variance=2.0 * max_variance, steps=steps, margin=margin)

    def at_index(self, index: int | float | Tensor) -> Tensor:
        """The time of an index of the table, float64.

        Raises:
            Incompatible: a bridge without a table. BadValue: an index outside [0, steps - 1].
        """
        steps = self._table()
        index = torch.as_tensor(index, dtype=torch.float64)
        if not bool(((index >= 0.0) & (index <= steps - 1)).all()):
            raise BadValue(f"indices of this table lie in [0, {steps - 1}], got {index.min():g} .. {index.max():g}")
        return self.margin + (1.0 - 2.0 * self.margin) * index / (steps - 1)

    def model_time(self, t: Tensor) -> Tensor:
        if self.steps is None:
            return t
        return (t - self.margin) / (1.0 - 2.0 * self.margin) * (self.steps - 1)

    def network_time(self, t: Tensor) -> Tensor:
        return t

    def _table(self) -> int:
        if self.steps is None:
            raise Incompatible(f"{self} has no table of numbered levels: Bridge.bbdm() has one")
        return self.steps

    @property
    def has_source(self) -> bool:
        return True

    def curves(self, t: Tensor) -> Curves:
        gamma, one = torch.sqrt(self.variance * t * (1.0 - t)), torch.ones_like(t)
        return 1.0 - t, t, gamma, -one, one, self._half_rate(t) / gamma

    def _half_rate(self, t: Tensor) -> Tensor:
        return 0.5 * self.variance * (1.0 - 2.0 * t)

    def noise_d_noise(self, level: Level) -> Weight:
        return evaluate(self._half_rate, level.t)

    def diffusion2(self, level: Level) -> Weight:
        self._refuse_other_noise("an SDE")
        return evaluate(lambda t: torch.full_like(t, self.variance), level.t)


# Stochastic interpolants


def _sin_pi(t: Tensor) -> Tensor:
    """``sin(pi t)``, exactly 0 at both ends."""
    return torch.sin(math.pi * torch.minimum(t, 1.0 - t))


STEEP = 10.0  # of the sigmoids, as the paper's code has it


def _bump(t: Tensor) -> Tensor:
    """``S(u + 1) - S(u - 1)`` with ``u = 10 (t - 1/2)``, less its value at the ends, where it is exactly 0."""
    u = STEEP * (torch.minimum(t, 1.0 - t) - 0.5)
    end = torch.full_like(u, -0.5 * STEEP)
    return (torch.sigmoid(u + 1.0) - torch.sigmoid(u - 1.0)) - (torch.sigmoid(end + 1.0) - torch.sigmoid(end - 1.0))


def _bump_slope(t: Tensor) -> Tensor:
    def bell(v: Tensor) -> Tensor:
        return torch.sigmoid(v) * torch.sigmoid(-v)

    u = STEEP * (t - 0.5)
    return STEEP * (bell(u + 1.0) - bell(u - 1.0))


@dataclass(frozen=True)
class Gamma:
    """The noise of an interpolant: ``gamma``, its derivative and ``gamma gamma'``, for a scale of 1."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    half_rate: Callable[[Tensor], Tensor]
    top: float  # its largest value, at t = 1/2


GAMMAS = {
    "brownian": Gamma(
        lambda t: torch.sqrt(t * (1.0 - t)),
        lambda t: (0.5 - t) / torch.sqrt(t * (1.0 - t)),  # infinite at both ends
        lambda t: 0.5 - t,
        0.5,
    ),
    "zero": Gamma(torch.zeros_like, torch.zeros_like, torch.zeros_like, 0.0),
    "bsquared": Gamma(
        lambda t: t * (1.0 - t), lambda t: 1.0 - 2.0 * t, lambda t: t * (1.0 - t) * (1.0 - 2.0 * t), 0.25
    ),
    "sinesquared": Gamma(
        lambda t: _sin_pi(t) ** 2,
        lambda t: 2.0 * math.pi * _sin_pi(t) * torch.cos(math.pi * t),
        lambda t: 2.0 * math.pi * _sin_pi(t) ** 3 * torch.cos(math.pi * t),
        1.0,
    ),
    "sigmoid": Gamma(_bump, _bump_slope, lambda t: _bump(t) * _bump_slope(t), 0.44660),
}
PATHS = ("linear", "trig", "encdec", "mirror")


@dataclass(frozen=True)
class Interpolant(Process):
    """A stochastic interpolant (Albergo 2023) between data at t = 0 and y at t = 1.

    With tau = 1 - t the time of the paper, its target is x0 and its base is y:

    * ``"linear"``: ``(1 - t) x0 + t y``;
    * ``"trig"``: ``sqrt(1 - gamma^2) (cos(pi t / 2) x0 + sin(pi t / 2) y)``, variance preserving with the noise;
    * ``"encdec"``: ``cos(pi t)^2`` on x0 until t = 1/2, on y from there on; pure noise in the middle;
    * ``"mirror"``: ``x0`` alone, which comes back at t = 1; no endpoint.

    and ``gamma z`` on top, ``gamma`` = scale times ``"brownian"`` ``sqrt(t (1 - t))``, ``"bsquared"`` ``t (1 - t)``,
    ``"sinesquared"`` ``sin(pi t)^2``, ``"sigmoid"`` (a bump of two sigmoids) or ``"zero"``. One-sided
    interpolants are ``Gaussian(Rectified())`` and ``Gaussian(Cosine())``.

    The paper's fields are ``velocity`` (b), ``mean_velocity`` (v), ``noise`` (eta) and ``score`` (s); with
    ``{"velocity", "noise"}`` or ``{"mean_velocity", "noise"}`` predicted everything else follows without knowing y.
    """

    path: str = "linear"
    gamma: str = "brownian"
    scale: float = 1.0
    noise_law: NoiseLaw = field(default_factory=Normal)

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise unknown("interpolant path", self.path, PATHS)
        if self.gamma not in GAMMAS:
            raise unknown("gamma", self.gamma, GAMMAS)
        if not 0.0 < self.scale < math.inf:
            raise BadValue(f"Interpolant needs scale > 0, got {self.scale}; for no noise gamma='zero'")
        if self.path == "trig" and self.scale * GAMMAS[self.gamma].top >= 1.0:
            raise BadValue(f"path 'trig' needs gamma < 1, but scale * {self.gamma} reaches {self.scale} at t = 1/2")
        if self.path in ("encdec", "mirror") and self.gamma == "zero":
            raise BadValue(f"path {self.path!r} needs noise in the middle, gamma='zero' has none")

    @property
    def has_source(self) -> bool:
        return self.path != "mirror"

    def curves(self, t: Tensor) -> Curves:
        noise, d_noise = self.scale * GAMMAS[self.gamma].value(t), self.scale * GAMMAS[self.gamma].slope(t)
        data, d_data = self._half(t, noise, first=True)
        source, d_back = self._half(1.0 - t, noise, first=False)
        return data, source, noise, d_data, -d_back, d_noise

    def _half(self, t: Tensor, noise: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
        """A coefficient that starts at 1, at the distance t from its own end, and its derivative in t."""
        if self.path == "linear":
            return 1.0 - t, -torch.ones_like(t)
        if self.path == "mirror":
            return (torch.ones_like(t) if first else torch.zeros_like(t)), torch.zeros_like(t)
        if self.path == "encdec":
            on = (t < 0.5) if first else (t <= 0.5)
            cosine = torch.where(on, torch.sin(math.pi * (0.5 - t)), 0.0)  # cos(pi t), exactly 0 at 1/2
            return cosine**2, -2.0 * math.pi * cosine * torch.sin(math.pi * t)
        root = torch.sqrt(1.0 - noise * noise)
        cosine, sine = torch.sin(0.5 * math.pi * (1.0 - t)), torch.sin(0.5 * math.pi * t)
        # All gammas are symmetric, so that gamma gamma' at distance t from either end is that of the curve at t.
        rate = self._half_rate(t) / root
        return root * cosine, -0.5 * math.pi * root * sine - rate * cosine

    def _half_rate(self, t: Tensor) -> Tensor:
        return self.scale**2 * GAMMAS[self.gamma].half_rate(t)

    def noise_d_noise(self, level: Level) -> Weight:
        return evaluate(self._half_rate, level.t)

    def prior(self) -> Any:
        if self.path == "mirror":
            raise Incompatible(f"{self} starts from data: give initial=, or start at a grid time with noise")
        return super().prior()


# Residual denoising


@dataclass(frozen=True, kw_only=True)
class Residual(Process):
    """Residual denoising diffusion (RDDM, Liu 2023): ``x_t = x0 + A (y - x0) + B z``, ``A = 1 - alpha``, ``B = sigma``.

    Its chain adds residual and noise, ``x_t = x_s + (A_t - A_s) (y - x0) + sqrt(B_t^2 - B_s^2) z``: the kernel keeps
    all of ``x_s`` (ratio 1), so the posterior's variance is ``(B_t^2 - B_s^2) B_s^2 / B_t^2``. The paper's eta
    multiplies that variance, ours (:class:`~condiff.sampling.DDIM`) the standard deviation: ours is its square root.

    Any schedule serves: :class:`Ramps` are the paper's, :class:`Clocks` let A and B run apart, and a DDPM's with y = 0
    (:meth:`from_ddim`) is the paper's reading of DDIM.
    """

    schedule: Schedule = field(default_factory=Ramps)
    noise_law: NoiseLaw = field(default_factory=Normal)

    @classmethod
    def from_ddim(cls, scheduler: Any) -> Residual:
        """A trained DDPM or DDIM, read as residual and noise: y = 0, ``A = 1 - sqrt(abar)``, ``B = sqrt(1 - abar)``.

        Args:
            scheduler: one of diffusers' with a table ``alphas_cumprod``, such a table, or the model's own schedule.

        Raises:
            BadType: none of them.
        """
        if isinstance(scheduler, Schedule):
            return cls(schedule=scheduler)
        table = getattr(scheduler, "alphas_cumprod", scheduler)
        if not isinstance(table, Tensor | list | tuple):
            raise BadType(f"a scheduler with alphas_cumprod, or that table, is wanted; got {type(scheduler).__name__}")
        return cls(schedule=Discrete.from_alphas_cumprod(table))

    @property
    def has_source(self) -> bool:
        return True

    def curves(self, t: Tensor) -> Curves:
        s = self.schedule
        alpha, d_alpha = s.alpha(t), s.d_alpha(t)
        return alpha, 1.0 - alpha, s.sigma(t), d_alpha, -d_alpha, s.d_sigma(t)

    def model_time(self, t: Tensor) -> Tensor:
        return self.schedule.model_time(t)

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr)

    def ratio(self, s: Level, t: Level) -> Weight:
        return 1.0

    def drift(self, level: Level) -> Weight:
        return 0.0

    def noise_d_noise(self, level: Level) -> Weight:
        return evaluate(self.schedule.sigma_d_sigma, level.t)
