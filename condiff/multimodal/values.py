"""Continuous data beside other data: pictures, vectors, anything of a fixed shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff import conditions
from condiff.errors import BadType, BadValue
from condiff.multimodal.heads import PlaceHead, PooledHead
from condiff.multimodal.modality import Encoder, Head, Modality
from condiff.networks import Layout, layout_of
from condiff.process import algebra
from condiff.process.algebra import Weight, finite
from condiff.random import Source
from condiff.typing import Float


class Continuous(Modality):
    """Base of the continuous ones: standardised by fixed numbers, compared by the square.

    What is said are standardised values. They are the mean of a normal law in the bound, whose standard deviation the
    level gives.
    """

    mean: float
    std: float
    own: bool
    layout: str | None = None

    @property
    def form(self) -> Layout:
        """Where its channels are."""
        return layout_of(self.shape, self.layout)

    @property
    def own_channels(self) -> int:
        return self.form.channels if self.own else 0

    def check(self, name: str, x: Tensor) -> None:
        if not x.dtype.is_floating_point:
            raise BadType(f"{name!r} holds floating point numbers, got {x.dtype}")
        if x.shape[1:] != self.shape:
            raise BadValue(f"{name!r} has samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        if not finite(x):
            raise BadValue(f"{name!r} holds NaN or infinity")

    def condition(self) -> conditions.Spec:
        if self.form.name == "vector":
            return conditions.Vector(self.shape[0])
        return conditions.Map(self.form.channels)

    def standard(self, x: Tensor) -> Tensor:
        """``(x - mean) / std``."""
        return x if self.mean == 0.0 and self.std == 1.0 else (x - self.mean) / self.std

    def encoder(self, part: tuple[int, ...]) -> Encoder:
        return Standard(self) if part == self.shape else Projection(self, part)

    def head(self, network: Any, part: tuple[int, ...]) -> Head:
        if part == self.shape:
            return PlaceHead(network, self.shape)
        return PooledHead(network.config.width, math.prod(self.shape))

    def shown(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if mask is None else torch.where(mask.bool(), x, self.mean)

    def loss(self, said: Tensor, x: Tensor, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
        error = (said.float() - self.standard(x).float()).square().flatten(1)
        if mask is None:
            return error.mean(1)
        counted = mask.bool().expand(x.shape).flatten(1)
        return torch.where(counted, error, 0.0).sum(1) / counted.sum(1).clamp_min(1)

    def log_prob(self, said: Tensor, x: Tensor, std: Weight) -> Float[Tensor, " batch"]:
        width = torch.as_tensor(std, dtype=torch.float64, device=x.device)
        away = (self.standard(x.double()) - said.double()).flatten(1)
        away, dims, width = away / algebra.match(width, away), away.shape[1], width * self.std
        return -0.5 * away.square().sum(1) - dims * (torch.log(width) + 0.5 * math.log(2.0 * math.pi))

    def decode(self, said: Tensor, rng: Source | None, std: Weight) -> Tensor:
        if rng is not None:
            said = said + algebra.scale(std, rng.normal(said.shape, said.dtype, said.device))
        return said if self.mean == 0.0 and self.std == 1.0 else said * self.std + self.mean


def _check(std: float, *sizes: int) -> None:
    if not std > 0.0:
        raise BadValue(f"std must be positive, got {std}")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise BadValue(f"sizes must be positive integers, got {sizes}")


@dataclass(frozen=True)
class Image(Continuous):
    """A picture (channels, height, width) in channels of the latent of its own.

    Args:
        mean, std: of its values, by which they are standardised.
        own: False adds it onto channels that others use; two pictures that are added can't be told apart.
    """

    channels: int
    height: int
    width: int
    mean: float = 0.0
    std: float = 0.5
    own: bool = True
    kind: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        _check(self.std, self.channels, self.height, self.width)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Vector(Continuous):
    """``dim`` numbers, as a representation of a picture: added onto the latent by a fixed random projection.

    Args:
        mean, std: of its values, by which they are standardised.
        own: numbers of the latent of its own, which is then a vector too.
        seed: of the projection.
    """

    dim: int
    mean: float = 0.0
    std: float = 1.0
    own: bool = False
    seed: int = 0
    kind: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        _check(self.std, self.dim)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dim,)


@dataclass(frozen=True)
class Values(Continuous):
    """Samples of any shape that networks have a layout for: volumes, video, series.

    Args: as :class:`Image`, with a shape and the layout's name (by the number of axes when None).
    """

    shape: tuple[int, ...] = field(default=())  # pyright: ignore[reportIncompatibleMethodOverride]: a field here
    layout: str | None = None
    mean: float = 0.0
    std: float = 1.0
    own: bool = True
    kind: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        _check(self.std, *self.shape)
        if self.form.name == "vector":
            raise BadValue(f"samples of shape {self.shape} are a Vector({self.shape[0]})")


class Standard(Encoder):
    """``(x - mean) / std``."""

    def __init__(self, modality: Continuous) -> None:
        super().__init__()
        self.modality = modality

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        u = self.modality.standard(x)
        return u if mask is None else torch.where(mask.bool(), u, 0.0)

    def expected(self, said: Tensor) -> Tensor:
        return said


class Projection(Standard):
    """``(x - mean) / std`` through fixed rows of length 1: white values have variance 1 in every coordinate."""

    rows: Tensor

    def __init__(self, modality: Continuous, part: tuple[int, ...]) -> None:
        super().__init__(modality)
        self.part = part
        rng = torch.Generator().manual_seed(getattr(modality, "seed", 0))
        rows = torch.randn(math.prod(part), math.prod(modality.shape), generator=rng, dtype=torch.float64)
        self.register_buffer("rows", (rows / rows.norm(dim=1, keepdim=True)).float())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.expected(super().forward(x, mask))

    def expected(self, said: Tensor) -> Tensor:
        return (said.to(self.rows.dtype).flatten(1) @ self.rows.mT).unflatten(1, self.part)
