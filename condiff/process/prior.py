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
from condiff.process import algebra
from condiff.process.algebra import combine
from condiff.process.level import Level
from condiff.random import Source


class Prior(ABC):
    """Base: draws the state at the first level of a grid."""

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
    KL-optimal start below t = 1 (Analytic-Init, Zhao 2024).
    """

    mean: float | Tensor = 0.0
    var: float = 0.0

    def __post_init__(self) -> None:
        if not self.var >= 0.0:
            raise BadValue(f"var must be >= 0, got {self.var}")

    def sample(self, level, shape, rng, *, source=None, dtype=torch.float32, device="cpu") -> Tensor:
        z = level.process.noise_law.sample(rng, shape, dtype, device)
        std = level.noise if self.var == 0.0 else algebra.sqrt(level.data * level.data * self.var + level.noise**2)
        terms = [(std, z)]
        if isinstance(self.mean, Tensor) or self.mean != 0.0:
            mean = torch.as_tensor(self.mean, dtype=dtype, device=device)
            terms.append((level.data, mean.expand(*shape)))
        if level.process.has_source:
            if source is None or tuple(source.shape) != tuple(shape):
                raise BadValue(f"{level.process} starts from an endpoint: give a condition of kind 'endpoint', {shape}")
            terms.append((level.source, source.to(dtype=dtype, device=device)))
        return combine(*terms)

    def log_prob(self, x: Tensor, level: Level, source: Tensor | None = None) -> Tensor:
        """log-density of the initial state in nats, (B,) float64.

        Raises:
            Incompatible: noise that isn't Gaussian, or none at this level.
        """
        if not level.process.noise_law.gaussian or level.noise == 0.0:
            raise Incompatible(f"{level.process} has no Gaussian density at t = {level.t}")
        mean = torch.as_tensor(self.mean, dtype=torch.float64, device=x.device).expand(x.shape)
        away = x.double() - level.data * mean
        if level.process.has_source and source is not None:
            away = away - level.source * source.double()
        var = level.data**2 * self.var + level.noise**2
        dims = away[0].numel()
        return -0.5 * (away.flatten(1).square().sum(1) / var + dims * math.log(2.0 * math.pi * var))
