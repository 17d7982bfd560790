"""Linear-Gaussian processes: ``x_t = data(t) x0 + source(t) y + noise(t) z``.

``x0`` is the clean sample, ``y`` an *endpoint* that comes with the condition (a degraded image, the other
end of a bridge) and ``z`` noise of a pluggable law. t = 0 is data, t = 1 is noise or source.

Everything that takes a time ``t`` takes a number, a tensor over the leading dimensions of the state (``(B,)``,
``(B, F)``), or a Level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Degenerate, Incompatible
from condiff.fields import checked
from condiff.process import algebra
from condiff.process.algebra import Weight, combine, holds
from condiff.process.level import Level, Time, level_at, levels_on
from condiff.process.noise import NoiseLaw, Normal
from condiff.process.prediction import Prediction
from condiff.process.schedule import Schedule
from condiff.random import Source, as_source

Curves = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # data, source, noise and their derivatives


class Process(ABC):
    """Base of the linear-Gaussian family. Subclasses give :meth:`curves`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    noise_law: NoiseLaw

    @abstractmethod
    def curves(self, t: Tensor) -> Curves:
        """``(data, source, noise, d_data, d_source, d_noise)`` at float64 times of any shape."""

    @property
    def has_source(self) -> bool:
        """Whether an endpoint ``y`` enters."""
        return False

    def model_time(self, t: Tensor) -> Tensor:
        """The number a released network of this process is told."""
        return t

    def network_time(self, t: Tensor) -> Tensor:
        """The same in [0, 1], as networks made here are told."""
        return self.model_time(t)

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
        return level_at(Level, self, t)

    def levels(self, grid: Tensor) -> list[Level]:
        """One level per row of a grid ``(N,)`` (numbers) or ``(N, ...)`` (tensors), all worked out at once."""
        return levels_on(Level, self, grid)

    # Forward

    def forward(
        self,
        x0: Tensor,
        t: Time,
        *,
        source: Tensor | None = None,
        noise: Tensor | None = None,
        rng: int | torch.Generator | Sequence[int] | Source | None = None,
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
            BadType: integer x0.
        """
        if not x0.dtype.is_floating_point:
            raise BadType(f"x0 must be a floating point tensor, got {x0.dtype}")
        level = self.at(t)
        if isinstance(level.t, Tensor) and level.t.shape != x0.shape[: level.t.ndim]:
            raise BadValue(
                f"t of shape {tuple(level.t.shape)} must match the leading dimensions of x0 {tuple(x0.shape)}"
            )
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

    # The Markov family: kernels between two levels, given the endpoint where there is one

    def ratio(self, s: Level, t: Level) -> Weight:
        """How much of ``x_s`` is in ``x_t`` for s < t: ``data_t / data_s`` unless the process says otherwise."""
        return algebra.divide(t.data, s.data)

    def kernel(self, s: Level, t: Level) -> tuple[Weight, Weight]:
        """``(ratio, std)`` of ``x_t = ratio x_s + ... + std z`` for s < t, ``std^2 = noise_t^2 - ratio^2 noise_s^2``.

        At data_t = 0 the kernel of a Gaussian path is pure noise. See :meth:`renoise` for the whole of it. Entries with
        s > t, which have no kernel, get ``std = 0`` (of a grid's rows some may go up while others go down).

        Raises:
            Incompatible: under non-Gaussian noise, and where the variance would be negative: a noise curve that falls
                faster than the data's.
        """
        self._refuse_other_noise("transition kernels")
        ratio = self.ratio(s, t)
        var = t.noise * t.noise - ratio * ratio * s.noise * s.noise
        if not holds((var >= -1e-9 * t.noise * t.noise) | (s.t > t.t)):  # refuses NaN too
            raise Incompatible(
                f"{self} has no transition kernel from s = {s.t} to t = {t.t}: its variance would be negative. "
                "A deterministic solver (Euler, Heun, DDIM with eta=0) needs none"
            )
        return ratio, algebra.sqrt(var)

    def posterior_std(self, t: Level, s: Level) -> Weight:
        """Standard deviation of ``q(x_s | x_t, x0, y)`` for s < t: ``noise_s / noise_t * std(x_t | x_s)``.

        Where noise_t = 0 (the end of a bridge) ``x_t`` says nothing more about ``x_s``, and it is noise_s.

        Raises:
            Incompatible: as :meth:`kernel`.
        """
        _, std = self.kernel(s, t)
        return algebra.where(t.noise == 0.0, s.noise, algebra.divide(s.noise * std, t.noise))

    def posterior(self, prediction: Prediction, s: Level) -> tuple[Tensor, Weight]:
        """Mean and standard deviation of ``q(x_s | x_t, x0, y)`` for s < t, at the predicted x0.

        The mean is ``data_s x0 + source_s y + ratio noise_s^2 / noise_t z``.
        """
        t = prediction.level
        weight = algebra.divide(self.ratio(s, t) * s.noise * s.noise, t.noise)
        return prediction.linear(x0=s.data, source=s.source, noise=weight), self.posterior_std(t, s)

    def posterior_error(self, t: Level, s: Level) -> Weight:
        """``KL(q(x_s | x_t, x0, y) || q(x_s | x_t, x0', y)) = weight |x0 - x0'|^2``: the weight, for s < t.

        ``(data_s - ratio noise_s^2 / noise_t^2 data_t)^2 / (2 var)``, on a path to noise ``(SNR_s - SNR_t) / 2``.
        """
        std = self.posterior_std(t, s)
        share = algebra.divide(self.ratio(s, t) * s.noise * s.noise, t.noise * t.noise)
        lack = s.data - share * t.data
        return algebra.divide(lack * lack, 2.0 * std * std)

    def renoise(
        self,
        x_s: Tensor,
        s: Time,
        t: Time,
        *,
        x0: Tensor | None = None,
        source: Tensor | None = None,
        noise: Tensor | None = None,
        rng: int | torch.Generator | Sequence[int] | Source | None = None,
    ) -> Tensor:
        """Draw ``x_t`` given ``x_s`` for s < t, one step up the forward process (RePaint, Lugmayr 2022; churn).

        ``x_t = ratio x_s + (data_t - ratio data_s) x0 + (source_t - ratio source_s) y + std z``; the x0 term
        vanishes unless the process has a ratio of its own.

        Raises:
            BadValue: s > t, a missing x0 or endpoint that the kernel needs, a noise of another shape.
            Incompatible: as :meth:`kernel`.
        """
        s, t = self.at(s), self.at(t)
        if not holds(s.t <= t.t):
            raise BadValue(f"renoise goes from less to more noise, s <= t; got s = {s.t}, t = {t.t}")
        ratio, std = self.kernel(s, t)
        weights = {"x0": t.data - ratio * s.data, "source": t.source - ratio * s.source}
        terms = [(ratio, x_s)]
        for (name, weight), value in zip(weights.items(), (x0, source), strict=True):
            if value is not None:
                terms.append((weight, value))
            elif not holds(abs(weight) <= 1e-12):
                raise BadValue(f"the kernel of {self} needs {name}=, of shape {tuple(x_s.shape)}")
        if noise is None:
            noise = self.noise_law.sample(as_source(rng), x_s.shape, x_s.dtype, x_s.device)
        elif noise.shape != x_s.shape:
            raise BadValue(f"noise of shape {tuple(noise.shape)} must have the shape of x_s, {tuple(x_s.shape)}")
        return combine(*terms, (std, noise))

    # SDE coefficients, given the endpoint where there is one

    def drift(self, level: Level) -> Weight:
        """``f = d log data / dt`` of the forward SDE ``dx = (f x + ...) dt + g dW``."""
        return algebra.divide(level.d_data, level.data)

    def noise_d_noise(self, level: Level) -> Weight:
        """``noise d_noise``, half the rate of the variance; finite where d_noise isn't."""
        return level.noise * level.d_noise

    def diffusion2(self, level: Level) -> Weight:
        """``g^2 = 2 noise d_noise - 2 noise^2 f`` of the forward SDE; ``inf`` where data(t) = 0 and noise isn't.

        Raises:
            Incompatible: under non-Gaussian noise.
            Degenerate: where data(t) = noise(t) = 0.
        """
        self._refuse_other_noise("an SDE")
        g2 = 2.0 * self.noise_d_noise(level) - 2.0 * level.noise * level.noise * self.drift(level)
        if not holds(g2 == g2):
            raise Degenerate(f"the diffusion of {self} has no value at t = {level.t}: data(t) = noise(t) = 0")
        return g2

    def _refuse_other_noise(self, what: str) -> None:
        if not self.noise_law.gaussian:
            raise Incompatible(
                f"{what} of {self} don't exist: its noise {self.noise_law} is not closed under addition. "
                "Use a deterministic solver (Euler, Heun, DDIM with eta=0), or normal noise"
            )


def evaluate(curve: Callable[[Tensor], Tensor], t: Weight) -> Weight:
    """A curve at a level's time: a number for a number."""
    return curve(t) if isinstance(t, Tensor) else float(curve(torch.tensor(t, dtype=torch.float64)))


@dataclass(frozen=True)
class Gaussian(Process):
    """Data to noise along a :class:`Schedule`: ``x_t = alpha(t) x0 + sigma(t) z``."""

    schedule: Schedule
    noise_law: NoiseLaw = field(default_factory=Normal)

    def curves(self, t: Tensor) -> Curves:
        s, zero = self.schedule, torch.zeros_like(t)
        return s.alpha(t), zero, s.sigma(t), s.d_alpha(t), zero, s.d_sigma(t)

    def model_time(self, t: Tensor) -> Tensor:
        return self.schedule.model_time(t)

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr)

    def noise_d_noise(self, level: Level) -> Weight:
        return evaluate(self.schedule.sigma_d_sigma, level.t)
