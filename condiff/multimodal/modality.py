"""Modality: one kind of data beside others, and what a diffusion that carries all of them needs of it.

Its encoder brings a sample into the latent, its head says what the latent knows of it, and its likelihood compares
the two. Encoders are fixed: with weights of their own the bound could be raised by making what they say small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from condiff.conditions import Spec
from condiff.fields import checked
from condiff.process.algebra import Weight
from condiff.random import Source
from condiff.typing import Float


class Readout(Protocol):
    """A network whose last features can be read: the DiT, the UNet and the MLP are such."""

    config: Any
    layout: Any

    def features(self, hidden: Any) -> Tensor: ...

    def arrange(self, values: Tensor, hidden: Any, shape: tuple[int, ...]) -> Tensor: ...

    def token_size(self, shape: tuple[int, ...]) -> int: ...


class Encoder(nn.Module, ABC):
    """Base: ``encoder(x, mask) -> (B, *part)``, the sample's share of the latent, of mean 0 and variance 1.

    What the mask leaves out adds nothing.
    """

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def expected(self, said: Tensor) -> Tensor:
        """``E[encoder(x)]`` under what a head says."""


class Head(nn.Module, ABC):
    """Base: ``head(features (B, N, width), hidden, network) -> parameters`` of the law of x given the latent."""

    @abstractmethod
    def forward(self, features: Tensor, hidden: Any, network: Any) -> Tensor: ...


class Modality(ABC):
    """Base. Subclasses are frozen dataclasses.

    Attributes:
        kind: of the condition that it is when it is known.
        loss_weight: of its head's loss, unless told otherwise.
    """

    kind: ClassVar[str]
    loss_weight: ClassVar[float] = 1.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @property
    @abstractmethod
    def own_channels(self) -> int:
        """Channels of the latent that are its alone; 0 where it is added onto all of them."""

    @abstractmethod
    def check(self, name: str, x: Tensor) -> None:
        """Refuse samples of another shape, dtype or range."""

    @abstractmethod
    def condition(self) -> Spec:
        """How a network is told that it is known."""

    @abstractmethod
    def encoder(self, part: tuple[int, ...]) -> Encoder:
        """The fixed map to its share of the latent, of shape ``part``."""

    @abstractmethod
    def head(self, network: Any, part: tuple[int, ...]) -> Head:
        """The decoder that reads a network's features."""

    @abstractmethod
    def shown(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The samples as a condition, with nothing told where the mask is false."""

    @abstractmethod
    def loss(self, said: Tensor, x: Tensor, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
        """How far what a head said is from the samples, over what the mask counts."""

    @abstractmethod
    def log_prob(self, said: Tensor, x: Tensor, std: Weight) -> Float[Tensor, " batch"]:
        """``log p(x | z)`` in nats, float64; ``std`` of continuous ones in standardised units."""

    @abstractmethod
    def decode(self, said: Tensor, rng: Source | None, std: Weight) -> Tensor:
        """The most likely sample, or with ``rng`` a drawn one."""
