"""How a network takes in its conditions: one small frozen spec per entry.

``{"label": Label(10), "age": Scalar(high=100.0), "text": Tokens(dim=768), "depth": Map(1)}`` says what a network is
told; :class:`condiff.conditions.ConditionBank` embeds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from condiff.conditions.embeddings import (
    Fourier,
    FrameChannels,
    LabelEmbedding,
    MapChannels,
    ObservedChannels,
    TokenEmbedding,
    VectorEmbedding,
)
from condiff.errors import BadValue
from condiff.fields import checked


class Spec(ABC):
    """Base of the specs. ``role`` says what the entry becomes: ``"vector"``, ``"tokens"`` or ``"map"``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    kind: ClassVar[str]
    role: ClassVar[str]

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """The module that embeds one entry of this kind."""

    @property
    def extra_channels(self) -> int:
        """Channels that the entry puts beside the state."""
        return 0


def _positive(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise BadValue(f"{name} must be a positive integer, got {size!r}")


@dataclass(frozen=True)
class Label(Spec):
    """One of ``classes`` classes, by its number."""

    classes: int
    level: bool = False
    kind: ClassVar[str] = "label"
    role: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        _positive(classes=self.classes)

    def build(self, width: int) -> nn.Module:
        return LabelEmbedding(self.classes, width)


@dataclass(frozen=True)
class Scalar(Spec):
    """A number, usually in [low, high] (values beyond are extrapolated), by smooth Fourier features."""

    low: float = 0.0
    high: float = 1.0
    features: int = 32
    level: bool = False
    kind: ClassVar[str] = "scalar"
    role: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        _positive(features=self.features)
        if not self.low < self.high:
            raise BadValue(f"a scalar's range must have low < high, got [{self.low}, {self.high}]")

    def build(self, width: int) -> nn.Module:
        return VectorEmbedding(Fourier(self.low, self.high, self.features), 2 * self.features + 1, width)


@dataclass(frozen=True)
class Vector(Spec):
    """A vector of ``dim`` numbers: pooled text, measurements, a pose."""

    dim: int
    level: bool = False
    kind: ClassVar[str] = "vector"
    role: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        _positive(dim=self.dim)

    def build(self, width: int) -> nn.Module:
        return VectorEmbedding(nn.Identity(), self.dim, width)


@dataclass(frozen=True)
class Tokens(Spec):
    """A sequence: embeddings of ``dim`` features, or ids below ``vocab``; ``length`` fixes its length."""

    dim: int | None = None
    vocab: int | None = None
    length: int | None = None
    level: bool = False
    kind: ClassVar[str] = "tokens"
    role: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        _positive(dim=self.dim, vocab=self.vocab, length=self.length)
        if (self.dim is None) == (self.vocab is None):
            raise BadValue(
                f"tokens have either dim= (embeddings) or vocab= (ids), got dim={self.dim}, vocab={self.vocab}"
            )

    def build(self, width: int) -> nn.Module:
        return TokenEmbedding(width, dim=self.dim, vocab=self.vocab, length=self.length)


@dataclass(frozen=True)
class Map(Spec):
    """``channels`` aligned with the sample, put beside its own, and one channel that says whether they are there."""

    channels: int
    level: bool = False
    kind: ClassVar[str] = "map"
    role: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        _positive(channels=self.channels)

    @property
    def extra_channels(self) -> int:
        return self.channels + 1

    def build(self, width: int) -> nn.Module:
        return MapChannels(self.channels)


@dataclass(frozen=True)
class Endpoint(Spec):
    """The other end of a process, of the sample's shape; with ``concat`` the network sees it as a map."""

    channels: int
    concat: bool = True
    level: bool = False
    kind: ClassVar[str] = "endpoint"
    role: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        _positive(channels=self.channels)

    @property
    def extra_channels(self) -> int:
        return self.channels + 1 if self.concat else 0

    def build(self, width: int) -> nn.Module:
        return MapChannels(self.channels)


@dataclass(frozen=True)
class Observation(Spec):
    """Known values of the sample's shape (``channels`` of them) and where they are known (the entry's ``mask``)."""

    channels: int
    level: bool = False
    kind: ClassVar[str] = "observation"
    role: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        _positive(channels=self.channels)

    @property
    def extra_channels(self) -> int:
        return 2 * self.channels

    def build(self, width: int) -> nn.Module:
        return ObservedChannels(self.channels)


@dataclass(frozen=True)
class Frames(Spec):
    """``frames`` given frames of ``channels`` each (past or future ones), put beside the state's channels.

    Each has its own indicator channel; the entry's ``mask`` (B, frames) says which are there. Beside a video they
    are seen by each of its frames.
    """

    frames: int
    channels: int
    level: bool = False
    kind: ClassVar[str] = "frames"
    role: ClassVar[str] = "map"

    def __post_init__(self) -> None:
        _positive(frames=self.frames, channels=self.channels)

    @property
    def extra_channels(self) -> int:
        return self.frames * (self.channels + 1)

    def build(self, width: int) -> nn.Module:
        return FrameChannels(self.frames, self.channels)
