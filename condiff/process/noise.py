"""Noise laws: the distribution of ``z`` in ``x_t = data x0 + source y + noise z``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible
from condiff.fields import checked
from condiff.process.algebra import match
from condiff.random import Source
from condiff.typing import Float


class NoiseLaw(ABC):
    """Base: how to draw z, its density where that is known, and whether the marginal score is ``-E[z | x_t] / noise``.

    The laws here are isotropic: the density of D coordinates is a function of ``q = |z|^2``.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def sample(self, rng: Source, shape: Sequence[int], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        """Draw z; the first dimension is the batch."""

    @property
    def gaussian(self) -> bool:
        """True when scores, posteriors and SDEs of Gaussian noise apply."""
        return False

    @property
    def variance(self) -> float:
        """Of a coordinate; inf where it has none."""
        return 1.0

    def log_kernel(self, q: Tensor, dims: Tensor | int) -> Tensor:
        """The log-density of D = ``dims`` coordinates at ``|z|^2 = q``, up to :meth:`log_normaliser`.

        Raises:
            Incompatible: a law whose density isn't known.
        """
        raise Incompatible(f"the density of {self} isn't known: only that of normal and Student-t noise is")

    def log_normaliser(self, dims: int) -> float:
        """The log-density of D = ``dims`` coordinates at z = 0."""
        raise Incompatible(f"the density of {self} isn't known: only that of normal and Student-t noise is")

    def log_prob(self, z: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        """The log-density of z in nats, (B,) float64."""
        dims = z[0].numel()
        return self.log_kernel(z.double().flatten(1).square().sum(1), dims) + self.log_normaliser(dims)


@dataclass(frozen=True)
class Normal(NoiseLaw):
    """Standard normal noise."""

    def sample(self, rng: Source, shape: Sequence[int], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        return rng.normal(shape, dtype, device)

    @property
    def gaussian(self) -> bool:
        return True

    def log_kernel(self, q: Tensor, dims: Tensor | int) -> Tensor:
        return -0.5 * q

    def log_normaliser(self, dims: int) -> float:
        return -0.5 * dims * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class StudentT(NoiseLaw):
    """Multivariate Student-t noise with ``df`` degrees of freedom (PFGM++, Xu 2023): heavy-tailed, isotropic.

    ``z = n / sqrt(c / df)`` with n standard normal and one chi-square ``c`` of df degrees *per sample*, shared by all
    coordinates. With ``r = sigma sqrt(df)`` this is the paper's kernel ``(|x - y|^2 + r^2)^(-(N + D) / 2)``, D = df,
    for any number N of coordinates. A coordinate has variance ``df / (df - 2)`` for df > 2. df = inf is
    :class:`Normal`, draw for draw.

    The marginal score is not ``-noise / noise(t)``, and sums of draws have another law: scores, SDEs and posteriors
    are refused. The velocity and so the ODE are exact.
    """

    df: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.df, bool) or not isinstance(self.df, int | float):
            raise BadType(f"df must be a number, got {self.df!r}")
        if not self.df > 0.0:
            raise BadValue(f"StudentT needs df > 0, got {self.df}")

    def sample(self, rng: Source, shape: Sequence[int], dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        normal = rng.normal(shape, dtype, device)
        if self.gaussian:
            return normal
        if len(shape) == 0:
            raise BadValue("Student-t noise is drawn per sample: the shape needs a batch dimension")
        half_chi2 = rng.gamma(0.5 * self.df, shape[:1], torch.float64, device)
        return match(torch.sqrt(0.5 * self.df / half_chi2), normal) * normal

    @property
    def gaussian(self) -> bool:
        return math.isinf(self.df)

    @property
    def variance(self) -> float:
        if self.gaussian:
            return 1.0
        return self.df / (self.df - 2.0) if self.df > 2.0 else math.inf

    def log_kernel(self, q: Tensor, dims: Tensor | int) -> Tensor:
        """``-(D + df) / 2 log(1 + q / df)``, which tends to ``-q / 2``."""
        return -0.5 * q if self.gaussian else -0.5 * (dims + self.df) * torch.log1p(q / self.df)

    def log_normaliser(self, dims: int) -> float:
        if self.gaussian:
            return Normal().log_normaliser(dims)
        top = math.lgamma(0.5 * (dims + self.df)) - math.lgamma(0.5 * self.df)
        return top - 0.5 * dims * math.log(self.df * math.pi)
