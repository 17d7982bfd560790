"""Linear-Gaussian processes: ``x_t = data(t) x0 + source(t) y + noise(t) z``.

``x0`` is the clean sample, ``y`` an *endpoint* that comes with the condition (a degraded image, the other
end of a bridge) and ``z`` noise of a pluggable law. t = 0 is data, t = 1 is noise or source.

Everything that takes a time ``t`` takes a number, a tensor over
the leading dimensions of the state (``(B,)``, ``(B, F)``), or a Level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process import algebra
from condiff.process.algebra import Weight, combine
from condiff.process.level import Level, Time
from condiff.process.noise import NoiseLaw, Normal
from condiff.process.prediction import Prediction
from condiff.process.schedule import Schedule, as_time
from condiff.random import Source, as_source


class Process(ABC):
    """Base of the linear-Gaussian family. Subclasses give :meth:`curves`."""

    noise_law: NoiseLaw

    @abstractmethod
    def curves(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``(data, source, noise, d_data, d_source, d_noise)`` at float64 times of any shape."""

    @property
    def has_source(self) -> bool:
        """Whether an endpoint ``y`` enters."""
        return False

    def model_time(self, t: Tensor) -> Tensor:
        """The number a network of this process is told."""
        return t

    def time(self, log_snr: Tensor) -> Tensor:
        """The time with the given log-SNR.

        Raises:
            Incompatible: when the process has no monotone log-SNR.
        """
        raise Incompatible(f"{self} has no inverse of its log-SNR; use a grid in t")

    # Levels

    def at(self, t: Time) -> Level:
        """The level at ``t``. A Level of this process is returned as it is.

        Raises:
            BadValue: when ``t`` lies outside [0, 1].
        """
        if isinstance(t, Level):
            if t.process is self or t.process == self:
                return t
            t = t.t
        times = as_time(t)
        curves = self.curves(times)
        if not isinstance(t, Tensor):
            return Level(float(t), *(float(c) for c in curves), self)
        return Level(times, *curves, self)

    def levels(self, grid: Tensor) -> list[Level]:
        """One level per row of a grid ``(N,)`` (numbers) or ``(N, ...)`` (tensors), all worked out at once."""
        times = as_time(grid, "grid")
        curves = (times, *self.curves(times))
        if times.ndim == 1:
            return [Level(*row, self) for row in zip(*(c.tolist() for c in curves), strict=True)]
        return [Level(*row, self) for row in zip(*(c.unbind(0) for c in curves), strict=True)]

    # Forward

    def forward(
        self,
        x0: Tensor,
        t: Time,
        *,
        source: Tensor | None = None,
        noise: Tensor | None = None,
        rng: None | int | torch.Generator | Source = None,
    ) -> Prediction:
        """Draw ``x_t`` given ``x0``: a :class:`Prediction` whose ``x_t`` is the state and whose every quantity is true.

        Args:
            x0: clean samples, (B, ...).
            t: one time, or one per row (B,), per frame (B, F), ...
            source: the endpoint y, of x0's shape, when the process has one.
            noise: z, when it is given rather than drawn.
            rng: where noise is drawn from.

        Raises:
            BadValue: shapes that don't match, a missing endpoint, t outside [0, 1].
        """
        level = self.at(t)
        if isinstance(level.t, Tensor) and level.t.shape != x0.shape[: level.t.ndim]:
            raise BadValue(f"t of shape {tuple(level.t.shape)} must match the leading dimensions of x0 {tuple(x0.shape)}")
        if self.has_source and source is None:
            raise BadValue(f"{self} moves between the data and an endpoint: give source=, of shape {tuple(x0.shape)}")
        if source is not None and source.shape != x0.shape:
            raise BadValue(f"source of shape {tuple(source.shape)} must have the shape of x0, {tuple(x0.shape)}")
        if noise is None:
            noise = self.noise_law.sample(as_source(rng), x0.shape, x0.dtype, x0.device)
        elif noise.shape != x0.shape:
            raise BadValue(f"noise of shape {tuple(noise.shape)} must have the shape of x0, {tuple(x0.shape)}")
        terms = [(level.data, x0), (level.noise, noise)]
        if self.has_source and source is not None:
            terms.append((level.source, source))
        return Prediction(combine(*terms), level, {"x0": x0, "noise": noise}, source=source)

    def prior(self) -> Any:
        """The default law of the initial state: pure noise, plus the endpoint where there is one."""
        from condiff.process.prior import Moments

        return Moments()

    # The Markov family: kernels between two levels

    def kernel(self, s: Level, t: Level) -> tuple[Weight, Weight]:
        """``x_t = ratio x_s + std z`` for s < t (no endpoint): ``ratio = data_t / data_s``.

        ``std^2 = noise_t^2 - ratio^2 noise_s^2``; at data_t = 0 the kernel is pure noise.
        """
        ratio = algebra.divide(t.data, s.data)
        return ratio, algebra.sqrt(t.noise * t.noise - ratio * ratio * s.noise * s.noise)

    def posterior_std(self, t: Level, s: Level) -> Weight:
        """Standard deviation of ``q(x_s | x_t, x0)`` for s < t: ``noise_s / noise_t * std(x_t | x_s)``."""
        _, std = self.kernel(s, t)
        return algebra.divide(s.noise * std, t.noise)

    # SDE coefficients (no endpoint)

    def drift(self, level: Level) -> Weight:
        """``f = d log data / dt`` of the forward SDE ``dx = f x dt + g dW``."""
        return algebra.divide(level.d_data, level.data)

    def diffusion2(self, level: Level) -> Weight:
        """``g^2 = 2 noise d_noise - 2 noise^2 f`` of the forward SDE."""
        return 2.0 * level.noise * (level.d_noise - level.noise * self.drift(level))


@dataclass(frozen=True)
class Gaussian(Process):
    """Data to noise along a :class:`Schedule`: ``x_t = alpha(t) x0 + sigma(t) z``."""

    schedule: Schedule
    noise_law: NoiseLaw = field(default_factory=Normal)

    def curves(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        s, zero = self.schedule, torch.zeros_like(t)
        return s.alpha(t), zero, s.sigma(t), s.d_alpha(t), zero, s.d_sigma(t)

    def model_time(self, t: Tensor) -> Tensor:
        return self.schedule.model_time(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr)
