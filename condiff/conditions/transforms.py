"""What happens to conditions on their way to a network: dropout, perturbation, corruption, in a chain.

``transform(cond, t, rng, training) -> Conditions``, with t the times of the batch and every draw from ``rng``. Nothing
changes the conditions that it is given, and outside training every transform returns them as they are (a
:class:`Corrupt` with ``sampling=`` excepted).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from condiff.conditions.condition import Condition, Conditions
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.fields import checked
from condiff.process import Process
from condiff.random import Source, as_source

_DROPPABLE = ("label", "scalar", "vector", "tokens", "map", "frames")


class Transform(Protocol):
    """The call that training loops and samplers make."""

    def __call__(self, cond: Conditions, t: Any, rng: Any, training: bool) -> Conditions: ...


def _probability(name: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise BadValue(f"{name} is a probability in [0, 1], got {p}")


def _known(names: Any, cond: Conditions) -> None:
    for name in names:
        if name not in cond:
            raise unknown("condition", name, cond)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Transforms one after the other."""

    transforms: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        source = as_source(rng)
        for transform in self.transforms:
            cond = transform(cond, t, source, training)
        return cond


@dataclass(frozen=True)
@checked
class Dropout:
    """Flags entries absent, per row, so that one network learns the conditional and the unconditional law.

    Args:
        p: one probability for every entry (endpoints, observations and known positions excepted), or one per name.
            Each entry is dropped independently of the others.
        joint: the probability that all of a row's entries are dropped together, drawn besides.

    Raises:
        BadValue: not a probability; a name that the conditions don't have.
    """

    p: float | Mapping[str, float] = 0.1
    joint: float = 0.0

    def __post_init__(self) -> None:
        each = self.p if isinstance(self.p, Mapping) else {"p": self.p}
        for name, p in (*each.items(), ("joint", self.joint)):
            _probability(f"dropout of {name!r}", p)

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        if not training or not cond:
            return cond
        source, rows = as_source(rng), cond.batch
        assert rows is not None
        chosen = [name for name, entry in cond.items() if entry.kind in _DROPPABLE]
        each = dict(self.p) if isinstance(self.p, Mapping) else dict.fromkeys(chosen, self.p)
        _known(each, cond)
        together = source.bernoulli(self.joint, (rows,)) if self.joint > 0.0 else None
        for name in dict.fromkeys([*each, *(chosen if together is not None else ())]):
            dropped = source.bernoulli(each.get(name, 0.0), (rows,))
            cond = cond.keeping(name, ~(dropped if together is None else dropped | together))
        return cond


@dataclass(frozen=True)
@checked
class TiedDropout:
    """Dropout by one uniform number per row: an entry is flagged absent where the number lies in its interval.

    Overlapping intervals are entries that are dropped together (UniCon, Li 2025):
    ``TiedDropout({"image.prompt": (0.0, 0.2), "depth.prompt": (0.1, 0.3)})`` drops the first alone, both, and the
    second alone, each with probability 0.1.

    Args:
        intervals: name -> (low, high), 0 <= low <= high <= 1.

    Raises:
        BadValue: no such interval; a name that the conditions don't have.
    """

    intervals: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, interval in self.intervals.items():
            if len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0:
                raise BadValue(f"{name!r} needs an interval (low, high) in [0, 1], got {interval}")

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        _known(self.intervals, cond)
        if not training or not self.intervals:
            return cond
        assert cond.batch is not None
        u = as_source(rng).uniform((cond.batch,), torch.float64)
        for name, (low, high) in self.intervals.items():
            cond = cond.keeping(name, ~((low <= u) & (u < high)))
        return cond


@dataclass(frozen=True, kw_only=True)
@checked
class Perturb:
    """Condition embedding perturbation (Chen 2024, arXiv 2405.20494): noise on embeddings, in training only.

    With d the embedding's width, ``delta ~ N(0, gamma^2 / d)`` or uniform on ``[-gamma, gamma] / sqrt(d)`` per
    component, so that ``E |delta|^2`` is ``gamma^2`` or ``gamma^2 / 3``. Vectors and token embeddings that come encoded
    are perturbed as they are, valid tokens only. A label's (or token id's) embedding is made inside the network: name
    its width in ``widths``, and the noise travels with the entry to be added there.

    Args:
        gamma: strength; 0 changes nothing.
        law: ``"gaussian"`` or ``"uniform"``.
        names: entries to perturb; None for every vector, every token embedding and every name in ``widths``.
        widths: name -> width of the embedding that the network makes.
        null: whether rows flagged absent are perturbed too, where the network adds the noise.

    Raises:
        BadValue: gamma < 0, an unknown law or name. Incompatible: integers without a width.
    """

    gamma: float = 1.0
    law: str = "gaussian"
    names: tuple[str, ...] | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    null: bool = True

    def __post_init__(self) -> None:
        if not self.gamma >= 0.0 or math.isinf(self.gamma):
            raise BadValue(f"gamma must be a finite number of at least 0, got {self.gamma}")
        if self.law not in ("gaussian", "uniform"):
            raise unknown("law of a perturbation", self.law, ("gaussian", "uniform"))
        if self.names is not None:
            object.__setattr__(self, "names", tuple(self.names))

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        if not training or self.gamma == 0.0:
            return cond
        source = as_source(rng)
        names = self.names
        if names is None:
            encoded = (n for n, c in cond.items() if c.kind in ("vector", "tokens") and c.value.is_floating_point())
            names = tuple(dict.fromkeys([*encoded, *self.widths]))
        _known(names, cond)
        return cond.replace(**{name: self._perturbed(name, cond[name], source) for name in names})

    def _perturbed(self, name: str, entry: Condition, source: Source) -> Condition:
        value = entry.value
        if name in self.widths:
            shape = (*value.shape[: 2 if entry.kind == "tokens" else 1], self.widths[name])
            return replace(entry, noise=self._visible(entry, self._draw(source, shape, torch.float32, value.device)))
        if entry.kind not in ("vector", "tokens") or not value.is_floating_point():
            raise Incompatible(
                f"{name!r} ({entry.kind}, {value.dtype}) is no embedding: perturb vectors or token embeddings, or "
                f"give the width of the embedding that the network makes, widths={{{name!r}: ...}}"
            )
        delta = self._draw(source, value.shape, value.dtype, value.device)
        if entry.mask is not None:
            delta = delta * entry.mask[..., None]
        return replace(entry, value=value + delta)

    def _visible(self, entry: Condition, delta: Tensor) -> Tensor:
        if entry.mask is not None and delta.ndim == 3:
            delta = delta * entry.mask[..., None]
        if self.null or entry.keep is None:
            return delta
        return delta * entry.keep.reshape(-1, *(1,) * (delta.ndim - 1))

    def _draw(self, source: Source, shape: Any, dtype: torch.dtype, device: Any) -> Tensor:
        std = self.gamma / math.sqrt(shape[-1])
        if self.law == "gaussian":
            return std * source.normal(shape, dtype, device)
        return std * (2.0 * source.uniform(shape, dtype, device) - 1.0)


class CorruptionLaw(ABC):
    """How noisy a condition is made at a time."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def level(self, t: Tensor, source: Source) -> Tensor:
        """Noise levels (B,) for times (B,)."""


@dataclass(frozen=True, kw_only=True)
class TimeNoise(CorruptionLaw):
    """More noise on the condition where the state has more (Zhao 2024, arXiv 2406.15735).

    ``level = maximum sigmoid(mu(t) + n)``, ``n ~ N(0, 1)``, ``mu(t) = 2 center t^power - center``: a logit-normal law
    whose median moves from ``maximum sigmoid(-center)`` at t = 0 to ``maximum sigmoid(center)`` at t = 1.

    Args:
        maximum: beta_m, above all levels, in units of the condition; more is more motion and less of the condition.
        power: a; the larger, the longer the condition stays clean.
        center: mu_max.
        clock: a process whose ``noise(t) / noise(1)`` is the t of mu, in place of t itself. The released code for
            Stable Video Diffusion has ``sigma / 700``, which its noise levels leave near 0: no time dependence at all.
    """

    maximum: float = 15.0
    power: float = 5.0
    center: float = 1.0
    clock: Process | None = None

    def __post_init__(self) -> None:
        if self.maximum <= 0.0 or self.power <= 0.0:
            raise BadValue(f"maximum and power must be positive, got {self.maximum} and {self.power}")
        if self.clock is not None and not isinstance(self.clock, Process):
            raise BadType(f"clock= takes a process, got {self.clock!r}")

    def level(self, t: Tensor, source: Source) -> Tensor:
        t = t.double()
        if self.clock is not None:
            t = torch.as_tensor(self.clock.at(t).noise / self.clock.at(1.0).noise)
        mu = 2.0 * self.center * t**self.power - self.center
        return self.maximum * torch.sigmoid(mu + source.normal(mu.shape, torch.float64, mu.device))


@dataclass(frozen=True, kw_only=True)
class FixedNoise(CorruptionLaw):
    """Levels uniform on [low, high], whatever the time (noise augmentation of cascades)."""

    low: float = 0.0
    high: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high:
            raise BadValue(f"levels must satisfy 0 <= low <= high, got [{self.low}, {self.high}]")

    def level(self, t: Tensor, source: Source) -> Tensor:
        return self.low + (self.high - self.low) * source.uniform(t.shape[:1], torch.float64, t.device)


@dataclass(frozen=True, kw_only=True)
class Corrupt:
    """Noise on a condition, ``value + level z`` (or variance preserving), its level told to the network.

    Args:
        name: of the entry, of floats.
        law: how noisy at a time, or any function ``corrupt(entry, t, rng) -> (entry, level)``.
        preserve: ``sqrt(1 - level^2) value + level z`` for levels in [0, 1].
        sampling: the level outside training; None leaves the condition as it is.
        shared: axes of the value along which z is the same: (1,) for one draw over all frames of (B, F, ...). All but
            the batch makes it a shift of the whole entry, as the released code for Stable Video Diffusion has it.

    Raises:
        BadValue: an unknown name, times that aren't given, a level above 1 with ``preserve``, axes that aren't there.
    """

    name: str
    law: Any = field(default_factory=TimeNoise)
    preserve: bool = False
    sampling: float | None = None
    shared: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared", tuple(self.shared))
        if any(isinstance(axis, bool) or not isinstance(axis, int) or axis < 1 for axis in self.shared):
            raise BadValue(f"shared= lists axes of the value behind the batch, 1 or more, got {self.shared}")
        if not isinstance(self.law, CorruptionLaw) and not isinstance(self.law, Callable):
            raise BadValue(f"a corruption needs a law such as TimeNoise(), or a function, got {self.law!r}")

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        if not training and self.sampling is None:
            return cond
        _known((self.name,), cond)
        entry, source = cond[self.name], as_source(rng)
        if not training:
            assert self.sampling is not None
            return cond.replace(**{self.name: self._noisy(entry, torch.full((entry.batch,), self.sampling), source)})
        times = _row_times(t, entry)
        if isinstance(self.law, CorruptionLaw):
            return cond.replace(**{self.name: self._noisy(entry, self.law.level(times, source), source)})
        new, level = self.law(entry, times, source)
        return cond.replace(**{self.name: replace(new, level=level)})

    def _noisy(self, entry: Condition, level: Tensor, source: Source) -> Condition:
        value = entry.value
        if not value.is_floating_point():
            raise Incompatible(f"noise can't be added to {self.name!r}, a {entry.kind} of {value.dtype}")
        if self.preserve and bool((level > 1.0).any()):
            raise BadValue(f"a variance-preserving corruption has levels in [0, 1], got {float(level.max())}")
        std = level.to(value.device, value.dtype).reshape(-1, *(1,) * (value.ndim - 1))
        if max(self.shared, default=0) >= value.ndim:
            raise BadValue(f"{self.name!r} of shape {tuple(value.shape)} has no axes {self.shared}")
        shape = [1 if axis in self.shared else n for axis, n in enumerate(value.shape)]
        noise = source.normal(shape, value.dtype, value.device)
        kept = torch.sqrt(1.0 - std * std) * value if self.preserve else value
        return replace(entry, value=kept + std * noise, level=level.to(value.device, torch.float32))


def _row_times(t: Any, entry: Condition) -> Tensor:
    """One time per row, from a number, (B,), or the mean of (B, F)."""
    if t is None:
        raise BadValue("a corruption that depends on time needs the times of the batch")
    times = torch.as_tensor(t, dtype=torch.float64, device=entry.value.device)
    times = times.expand(entry.batch) if times.ndim == 0 else times.flatten(1).mean(1) if times.ndim > 1 else times
    if times.shape[0] != entry.batch:
        raise BadValue(f"{times.shape[0]} times came with {entry.batch} rows of conditions")
    return times
