"""How a network takes in its conditions: one small frozen spec per entry, and the bank that embeds them all.

``{"label": Label(10), "age": Scalar(high=100.0), "text": Tokens(dim=768), "depth": Map(1)}`` says what a network is
told. A :class:`ConditionBank` turns a batch of :class:`Conditions` into what networks use: the sum of all vectors,
a row of tokens, and channels to put beside the state.

An entry that is absent for a row is replaced by something learned or flagged, whatever its value was: a null
vector, one null token, an indicator channel. Rows are embedded independently of their neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condiff.conditions.condition import Condition, Conditions
from condiff.errors import BadType, BadValue, unknown

_INIT = 0.02  # standard deviation of fresh nulls


class Spec:
    """Base of the specs. ``role`` says what the entry becomes: ``"vector"``, ``"tokens"`` or ``"map"``."""

    kind: ClassVar[str]
    role: ClassVar[str]

    def build(self, width: int) -> nn.Module:
        """The module that embeds one entry of this kind."""
        raise NotImplementedError

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
        return _LabelEmbedding(self.classes, width)


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
        return _VectorEmbedding(_Fourier(self.low, self.high, self.features), 2 * self.features + 1, width)


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
        return _VectorEmbedding(nn.Identity(), self.dim, width)


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
        return _TokenEmbedding(self, width)


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
        return _MapChannels(self.channels)


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
        return _MapChannels(self.channels)


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
        return _ObservedChannels(self.channels)


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
        return _FrameChannels(self.frames, self.channels)


# Modules: each takes an entry and says what stands in for it where it is absent.


def _only(keep: Tensor | None, value: Tensor) -> Tensor:
    """The value with absent rows zeroed (whatever they hold, NaN included), so that no gradient comes from them."""
    if keep is None:
        return value
    keep = keep.reshape(-1, *(1,) * (value.ndim - 1))
    return torch.where(keep, value, torch.zeros((), dtype=value.dtype, device=value.device))


def _perturbed(x: Tensor, noise: Tensor | None) -> Tensor:
    if noise is None:
        return x
    if noise.shape != x.shape:
        raise BadValue(f"noise of shape {tuple(noise.shape)} can't be added to embeddings of shape {tuple(x.shape)}")
    return x + noise.to(x.dtype)


def _check_ids(value: Tensor, size: int, keep: Tensor | None, what: str) -> None:
    """Refuse ids outside [0, size). Where reading values would wait for a device or break a trace it is left out."""
    if (
        torch.compiler.is_compiling()
        or value.device.type != "cpu"
        or torch._C._functorch.is_functorch_wrapped_tensor(value)
    ):
        return
    value = _only(keep, value)
    low, high = (int(m) for m in torch.aminmax(value)) if value.numel() else (0, 0)
    if low < 0 or high >= size:
        raise BadValue(f"{what} lie in 0 ... {size - 1}, got {low if low < 0 else high}")


class _LabelEmbedding(nn.Module):
    """A table whose last row is the null."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)  # N(0, 1): tables that start near 0 learn classes far later

    def forward(self, entry: Condition | None, batch: int) -> Tensor:
        if entry is None:
            return self.table.weight[-1].expand(batch, -1)
        value, keep = entry.value, entry.keep
        _check_ids(value, self.classes, keep, "labels")
        if keep is not None:
            value = torch.where(keep, value, self.classes)
        return _perturbed(self.table(value), entry.noise)


class _Fourier(nn.Module):
    """``[u, cos(2 pi f u), sin(2 pi f u)]`` of ``u = (value - low) / (high - low)``, f from 1/4 to 16 geometrically."""

    def __init__(self, low: float, high: float, features: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        cycles = torch.logspace(-2, 4, features, base=2.0)
        self.register_buffer("freqs", 2.0 * math.pi * cycles, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        u = (value.float() - self.low) / (self.high - self.low)
        angles = u[:, None] * self.freqs.float()
        return torch.cat([u[:, None], angles.cos(), angles.sin()], dim=-1)


class _VectorEmbedding(nn.Module):
    """``W2 silu(W1 features)``, and a null vector."""

    def __init__(self, features: nn.Module, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.features, self.fc1, self.fc2 = features, nn.Linear(dim, width), nn.Linear(width, width)
        self.null = nn.Parameter(torch.randn(width) * _INIT)

    def forward(self, entry: Condition | None, batch: int) -> Tensor:
        if entry is None:
            return self.null.expand(batch, -1)
        value = _only(entry.keep, entry.value)
        if value.ndim == 2 and value.shape[1] != self.dim:
            raise BadValue(f"a vector of {self.dim} numbers was declared, got {value.shape[1]}")
        x = self.fc2(F.silu(self.fc1(self.features(value).to(self.fc1.weight.dtype))))
        x = x if entry.keep is None else torch.where(entry.keep[:, None], x, self.null.to(x.dtype))
        return _perturbed(x, entry.noise)


class _TokenEmbedding(nn.Module):
    """Tokens to the network's width; an absent row attends to one null token."""

    def __init__(self, spec: Tokens, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.table = nn.Embedding(spec.vocab, width) if spec.vocab else None
        self.proj = nn.Linear(spec.dim, width) if spec.dim else None
        self.position = nn.Parameter(torch.randn(spec.length, width) * _INIT) if spec.length else None
        self.null = nn.Parameter(torch.randn(width) * _INIT)

    def check(self, value: Tensor) -> None:
        length = self.spec.length
        if length and value.shape[1] != length:
            raise BadValue(f"{length} tokens were declared, got {value.shape[1]}")
        if self.spec.dim and (value.ndim != 3 or value.shape[2] != self.spec.dim):
            raise BadValue(f"tokens of shape (B, L, {self.spec.dim}) were declared, got {tuple(value.shape)}")
        if self.spec.vocab and (value.ndim != 2 or value.dtype.is_floating_point):
            raise BadValue(f"token ids of shape (B, L) were declared, got {value.dtype} {tuple(value.shape)}")

    def forward(self, entry: Condition | None, batch: int) -> tuple[Tensor, Tensor | None]:
        if entry is None:
            return self.null.expand(batch, 1, -1), None
        self.check(entry.value)
        keep, mask = entry.keep, entry.mask
        value = _only(keep, entry.value)
        if mask is not None:
            value = torch.where(mask if value.ndim == 2 else mask[..., None], value, torch.zeros_like(value))
        x = self.embed(value)
        if keep is None:
            return _perturbed(x, entry.noise), mask
        x = _perturbed(torch.where(keep[:, None, None], x, self.null.to(x.dtype)), entry.noise)
        first = torch.arange(x.shape[1], device=x.device) == 0
        return x, torch.where(keep[:, None], True if mask is None else mask, first)

    def embed(self, value: Tensor) -> Tensor:
        if self.table is not None:
            _check_ids(value, self.table.num_embeddings, None, "token ids")
            x = self.table(value)
        else:
            assert self.proj is not None
            x = self.proj(value.to(self.proj.weight.dtype))
        return x if self.position is None else x + self.position


def _indicator(present: Tensor, like: Tensor) -> Tensor:
    """Flags (B,) or (B, n) as channels (B, n, *spatial)."""
    flags = present.reshape(present.shape[0], -1, *(1,) * (like.ndim - 2)).to(like.dtype)
    return flags.expand(-1, -1, *like.shape[2:])


def _aligned(value: Tensor, channels: int, like: Tensor, what: str) -> Tensor:
    wanted = (like.shape[0], channels, *like.shape[2:])
    if value.shape != wanted:
        raise BadValue(f"the {what} beside this state has shape {wanted} (channels first), got {tuple(value.shape)}")
    return value.to(like.dtype)


class _MapChannels(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, entry: Condition | None, like: Tensor, channel_first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if entry is None:
            return [like.new_zeros(like.shape[0], self.channels + 1, *like.shape[2:])]
        value = _aligned(channel_first(entry.value), self.channels, like, entry.kind)
        return [_only(entry.keep, value), _indicator(entry.kept(), like)]


class _ObservedChannels(_MapChannels):
    def forward(self, entry: Condition | None, like: Tensor, channel_first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if entry is None:
            return [like.new_zeros(like.shape[0], 2 * self.channels, *like.shape[2:])]
        value = _aligned(channel_first(entry.value), self.channels, like, "observation")
        mask = torch.ones_like(value, dtype=torch.bool)
        if entry.mask is not None:
            mask = channel_first(entry.mask.bool().expand(entry.value.shape))
        if entry.keep is not None:
            mask = mask & entry.keep.reshape(-1, *(1,) * (value.ndim - 1))
        return [torch.where(mask, value, torch.zeros_like(value)), mask.to(like.dtype)]


class _FrameChannels(nn.Module):
    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.frames, self.channels = frames, channels

    def forward(self, entry: Condition | None, like: Tensor, channel_first: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if entry is None:
            return [like.new_zeros(like.shape[0], self.frames * (self.channels + 1), *like.shape[2:])]
        value = entry.value
        space = like.shape[like.ndim - value.ndim + 3 :] if value.ndim == 5 else like.shape[2:]
        if value.shape[1:] != (self.frames, self.channels, *space):
            raise BadValue(
                f"{self.frames} frames of {(self.channels, *space)} were declared, got {tuple(value.shape[1:])}"
            )
        there = entry.kept()[:, None].expand(-1, self.frames)
        there = there if entry.mask is None else there & entry.mask
        value = torch.where(there.reshape(*there.shape, *(1,) * (value.ndim - 2)), value, torch.zeros_like(value))
        value = value.flatten(1, 2).to(like.dtype)
        value = value.reshape(*value.shape[:2], *(1,) * (like.ndim - value.ndim), *value.shape[2:])
        return [value.expand(-1, -1, *like.shape[2:]), _indicator(there, like)]


class _LevelEmbedding(nn.Module):
    """The noise level of a corrupted condition, by Fourier features of log(1 + level); 0 when none is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features, self.proj = _Fourier(0.0, 5.0, 16), nn.Linear(33, width)

    def forward(self, entry: Condition | None, batch: int) -> Tensor:
        weight = self.proj.weight
        level = entry.level if entry is not None and entry.level is not None else weight.new_zeros(batch)
        x = self.proj(self.features(torch.log1p(level.float())).to(weight.dtype))
        return x if entry is None or entry.keep is None else _only(entry.keep, x)


class Embedded(NamedTuple):
    """What a network gets: (B, width), (B, L, width), its (B, L) mask, channels to put beside the state."""

    vector: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None
    maps: tuple[Tensor, ...]


_OF_THE_PROCESS = ("endpoint", "observation", "known")


class ConditionBank(nn.Module):
    """Embeds all conditions of a network.

    Args:
        specs: name -> :class:`Spec`.
        width: of vectors and tokens.
        tokens, maps: whether the network can take tokens, channels beside the state.

    Raises:
        BadType: something that isn't a spec. BadValue: a spec that the network can't take.
    """

    def __init__(self, specs: Mapping[str, Any], width: int, *, tokens: bool = True, maps: bool = True) -> None:
        super().__init__()
        for name, spec in specs.items():
            if not isinstance(spec, Spec):
                raise BadType(f"condition {name!r} is declared by a spec such as Label(10), got {spec!r}")
            if (spec.role == "tokens" and not tokens) or (spec.role == "map" and not maps):
                raise BadValue(f"this network takes no {spec.kind} conditions, got {name}={spec}")
        self.specs = dict(specs)
        self.kinds = {name: spec.kind for name, spec in specs.items()}
        self.entries = nn.ModuleDict({name: spec.build(width) for name, spec in specs.items()})
        self.levels = nn.ModuleDict(
            {name: _LevelEmbedding(width) for name, spec in specs.items() if getattr(spec, "level", False)}
        )

    @property
    def extra_channels(self) -> int:
        """Channels beside the state, of all entries."""
        return sum(spec.extra_channels for spec in self.specs.values())

    @property
    def has_tokens(self) -> bool:
        return any(spec.role == "tokens" for spec in self.specs.values())

    def check(self, cond: Conditions, batch: int) -> None:
        """Refuse entries of unknown names, of another kind, or for another number of rows."""
        for name, entry in cond.items():
            if name not in self.specs:
                if entry.kind in _OF_THE_PROCESS:  # read by the process or by guidance, not by this network
                    continue
                raise unknown("condition", name, self.specs)
            if entry.kind != self.kinds[name]:
                raise BadValue(f"condition {name!r} was declared as {self.kinds[name]!r}, got {entry.kind!r}")
            if entry.batch != batch:
                raise BadValue(f"condition {name!r} has {entry.batch} rows, the state has {batch}")

    def forward(
        self, cond: Conditions, like: Tensor, channel_first: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Embedded:
        """Embed a batch; ``like`` is the state, channels first, and ``channel_first`` brings maps to its order."""
        batch = like.shape[0]
        self.check(cond, batch)
        vector, tokens, maps = None, [], []
        for name, module in self.entries.items():
            spec, entry = self.specs[name], cond.get(name)
            if spec.role == "vector":
                part = module(entry, batch)
                vector = part if vector is None else vector + part
            elif spec.role == "tokens":
                tokens.append(module(entry, batch))
            elif spec.extra_channels:
                maps.extend(module(entry, like, channel_first))
        for name, module in self.levels.items():
            part = module(cond.get(name), batch)
            vector = part if vector is None else vector + part
        return Embedded(vector, *_join(tokens), tuple(maps))


def _join(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
    """Several rows of tokens one after the other."""
    if not parts:
        return None, None
    if len(parts) == 1:
        return parts[0]
    tokens = torch.cat([x for x, _ in parts], dim=1)
    if all(mask is None for _, mask in parts):
        return tokens, None
    masks = [x.new_ones(x.shape[:2], dtype=torch.bool) if m is None else m for x, m in parts]
    return tokens, torch.cat(masks, dim=1)
