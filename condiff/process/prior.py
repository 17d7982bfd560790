"""Priors: where a sampler's initial state comes from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.fields import checked
from condiff.process import algebra
from condiff.process.algebra import Weight, combine
from condiff.process.level import Level
from condiff.random import Source


class Prior(ABC):
    """Base: draws the state at the first level of a grid."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def sample(
        self,
        level: Level,
        shape: Sequence[int],
        rng: Source,
        *,
        source: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: Any = "cpu",
    ) -> Tensor:
        """``x`` at ``level``, of the given shape (B, ...)."""

    def log_prob(self, x: Tensor, level: Level, source: Tensor | None = None) -> Tensor:
        """log-density of the initial state in nats, (B,) float64.

        Raises:
            Incompatible: when it isn't known.
        """
        raise Incompatible(f"{self} has no log-density, which a likelihood needs; use Moments()")


@dataclass(frozen=True)
class Moments(Prior):
    """``x = data mean + source y + sqrt(data^2 var + noise^2) z``: the best isotropic Gaussian at any level.

    With the defaults, mean 0 and var 0, it is pure noise (and the endpoint); with the data's moments it is the
    KL-optimal start below t = 1 (Analytic-Init, Zhao 2024). With one ``mean`` per sample it is that sample, noised to
    the level (SDEdit). Under non-Gaussian noise the data's part is drawn apart.

    Args:
        mean: a number, a tensor of a sample's shape, or one per row (B, ...).
        var: the data's variance per coordinate.

    Raises:
        BadValue: a negative variance, a mean that isn't finite, or one that isn't of the state's shape.
    """

    mean: float | Tensor = 0.0
    var: float = 0.0

    def __post_init__(self) -> None:
        if not self.var >= 0.0:
            raise BadValue(f"var must be >= 0, got {self.var}")
        if isinstance(self.mean, Tensor) and not algebra.holds(torch.isfinite(self.mean)):
            raise BadValue("mean holds NaN or infinity")

    def sample(self, level, shape, rng, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        law = level.process.noise_law
        terms = [(self._std(level) if law.gaussian else level.noise, law.sample(rng, shape, dtype, device))]
        if isinstance(self.mean, Tensor) or self.mean != 0.0:
            terms.append((level.data, _expand(torch.as_tensor(self.mean, dtype=dtype, device=device), shape)))
        if self.var > 0.0 and not law.gaussian:  # normal data and other noise don't add up to one draw
            terms.append((level.data * self.var**0.5, rng.normal(shape, dtype, device)))
        if level.process.has_source:
            if source is None or tuple(source.shape) != tuple(shape):
                raise BadValue(f"{level.process} starts from an endpoint: give a condition of kind 'endpoint', {shape}")
            terms.append((level.source, source.to(dtype=dtype, device=device)))
        return combine(*terms)

    def _std(self, level: Level) -> Weight:
        return level.noise if self.var == 0.0 else algebra.sqrt(level.data * level.data * self.var + level.noise**2)

    def log_prob(self, x: Tensor, level: Level, source: Tensor | None = None) -> Tensor:
        """log-density of the initial state in nats, (B,) float64.

        Raises:
            BadValue: a mean that isn't of the state's shape, an endpoint that isn't given.
            Incompatible: no noise at this level, or other than Gaussian noise beside data of some variance.
        """
        law = level.process.noise_law
        if level.noise == 0.0 or not (law.gaussian or self.var == 0.0):
            raise Incompatible(f"{self} has no density that is known for {level.process} at t = {level.t}")
        mean = _expand(torch.as_tensor(self.mean, dtype=torch.float64, device=x.device), x.shape)
        away = x.double() - level.data * mean
        if level.process.has_source:
            if source is None:
                raise BadValue(f"the density of {level.process} needs the endpoint: give source=")
            away = away - level.source * source.double()
        std = self._std(level)
        return law.log_prob(away / std) - away[0].numel() * math.log(std)


@dataclass(frozen=True)
class ProgressiveNoise(Prior):
    """Noise that changes slowly over the frames of (B, F, ...), each frame's of unit variance (Ge 2023, section 3).

    ``e_1 = n_1, e_i = alpha / sqrt(1 + alpha^2) e_(i-1) + 1 / sqrt(1 + alpha^2) n_i``; alpha = 0 is independent noise.

    Raises:
        BadValue: alpha < 0, a state without frames. Incompatible: another than normal noise.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha < 0.0:
            raise BadValue(f"alpha must be >= 0, got {self.alpha}")

    def sample(self, level, shape, rng, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        if len(shape) < 3:
            raise BadValue(f"noise that runs over frames needs a state (B, F, ...), got {tuple(shape)}")
        if not level.process.noise_law.gaussian or level.process.has_source:
            raise Incompatible(f"{self} is normal noise alone, and {level.process} starts from something else")
        noise = rng.normal(shape, dtype, device)
        keep = self.alpha / math.sqrt(1.0 + self.alpha**2)
        frames = [noise[:, 0]]
        for fresh in noise[:, 1:].unbind(1):
            frames.append(keep * frames[-1] + math.sqrt(1.0 - keep**2) * fresh)
        return combine((level.noise, torch.stack(frames, dim=1)))


@dataclass(frozen=True, eq=False)
class EndpointLaw(Prior):
    """The endpoint drawn from its own law: ``x = source y + noise z`` with ``y ~ law``.

    For models that don't see which endpoint a sample started from (stochastic interpolants). An endpoint that is
    given as a condition is used instead of a draw.

    Args:
        law: anything with ``sample(n, rng, dtype=)`` and, for likelihoods, ``log_prob(y, 0.0)``, as the oracles of
            :mod:`condiff.process.oracles` have them.

    Example:
        >>> law = oracles.mixture(Gaussian(Rectified()), [[-1.0, 0.0], [1.0, 0.0]], stds=0.1)
        >>> sample(model, prior=EndpointLaw(law), num=64, solver=SDE(0.5, "constant"), steps=100)
    """

    law: Any

    def sample(self, level, shape, rng, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        if not level.process.has_source:
            raise Incompatible(f"{level.process} has no endpoint, whose law this is")
        if source is None:
            source = self.law.sample(shape[0], rng, dtype=dtype)
        return Moments().sample(level, shape, rng, source=source, dtype=dtype, device=device)

    def log_prob(self, x: Tensor, level: Level, source: Tensor | None = None) -> Tensor:
        """``log law(x / source(t)) - D log source(t)``, (B,) float64: the density of the endpoint, not given it.

        Raises:
            Incompatible: a law without density; a level where the state isn't the endpoint alone.
        """
        if not hasattr(self.law, "log_prob"):
            raise Incompatible(f"{self.law!r} has no log_prob, so its samples have no known density")
        if not algebra.holds((level.data == 0.0) & (level.noise == 0.0)):
            raise Incompatible(
                f"the state of {level.process} at t = {level.t} is not its endpoint alone: let the grid begin at t = 1"
            )
        return self.law.log_prob(x / level.source, 0.0).double() - x[0].numel() * math.log(level.source)


@dataclass(frozen=True, eq=False)
class Given(Prior):
    """The initial state itself: an inverted latent, a teleported start, a variable of a joint state that is known."""

    value: Tensor

    def sample(self, level, shape, rng, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        if tuple(self.value.shape) != tuple(shape):
            raise BadValue(f"the given state has shape {tuple(self.value.shape)}, the sampler needs {tuple(shape)}")
        value = self.value.to(device=device)
        return value.to(dtype) if value.is_floating_point() else value  # tokens stay the integers that they are


def _expand(mean: Tensor, shape: Sequence[int]) -> Tensor:
    """A mean of one number, of a sample's shape or of the whole state's; nothing else is broadcast."""
    if mean.ndim and tuple(mean.shape) not in (tuple(shape), tuple(shape[1:])):
        raise BadValue(f"mean of shape {tuple(mean.shape)} doesn't fit a state of shape {tuple(shape)}")
    return mean.expand(*shape)
