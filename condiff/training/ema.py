"""Averages of the weights over training, several at once, in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from condiff.errors import BadType, BadValue, unknown


class Average(ABC):
    """Base: how much of the average is kept at step k (the first is 1)."""

    @abstractmethod
    def keep(self, step: int) -> float:
        """``average <- keep average + (1 - keep) weights``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What files and selections call it."""


@dataclass(frozen=True)
class Exponential(Average):
    """A constant ``decay``; with ``warm_up`` at most ``(1 + k) / (10 + k)``, so that the start is forgotten.

    A half-life of n steps is the decay ``2 ** (-1 / n)``.
    """

    decay: float = 0.999
    warm_up: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise BadValue(f"a decay lies in [0, 1), got {self.decay}")

    def keep(self, step: int) -> float:
        return min(self.decay, (1.0 + step) / (10.0 + step)) if self.warm_up else self.decay

    @property
    def name(self) -> str:
        return f"{self.decay:g}"


@dataclass(frozen=True)
class PowerFunction(Average):
    """``keep = (1 - 1/k)^(gamma + 1)``: a window of relative width ``width`` at any time (Karras 2024, eq. 121).

    ``width`` is the standard deviation of the profile over the training time so far, 0 < width < 0.28.
    """

    width: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.width < 0.28:
            raise BadValue(f"the relative width of a power-function average lies in (0, 0.28), got {self.width}")

    @property
    def gamma(self) -> float:
        """The positive root of ``(g + 1) / ((g + 2)^2 (g + 3)) = width^2``."""
        low, high = 0.0, 1e6
        for _ in range(200):
            g = 0.5 * (low + high)
            low, high = (g, high) if (g + 1.0) / ((g + 2.0) ** 2 * (g + 3.0)) > self.width**2 else (low, g)
        return 0.5 * (low + high)

    def keep(self, step: int) -> float:
        return (1.0 - 1.0 / step) ** (self.gamma + 1.0) if step > 1 else 0.0

    @property
    def name(self) -> str:
        return f"power-{self.width:g}"


def as_average(value: float | Average) -> Average:
    """A decay, or an average as it is."""
    if isinstance(value, Average):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadType(f"an average is a decay such as 0.999, or an Average, got {value!r}")
    return Exponential(float(value))


class EMA:
    """Averages of a module's parameters; buffers are copied as they are.

    Args:
        module: whose weights are followed. Its parameters may be sharded (FSDP): so are the averages then.
        averages: decays or :class:`Average` s.

    Averages are float32 (float64 for float64 weights), whatever the weights are.
    """

    def __init__(self, module: nn.Module, averages: Sequence[float | Average] = (0.999,)) -> None:
        self.averages = {a.name: a for a in map(as_average, averages)}
        if len(self.averages) != len(averages):
            raise BadValue(f"averages must differ, got {list(averages)}")
        tensors = _tensors(module)
        self.names = [n for n, p in tensors.items() if p.requires_grad and p.is_floating_point()]
        self.rest = [n for n in tensors if n not in set(self.names)]
        self._live = [tensors[n] for n in self.names]
        self._live_rest = [tensors[n] for n in self.rest]
        self.values = {name: [_wide(p.detach()).clone() for p in self._live] for name in self.averages}

    @property
    def default(self) -> str:
        """The first average."""
        return next(iter(self.averages))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (the first is 1)."""
        if not self._live:
            return
        live = [_wide(p) for p in _locals(self._live)]
        for name, average in self.averages.items():
            torch._foreach_lerp_(_locals(self.values[name]), live, 1.0 - average.keep(step))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The averaged parameters and the buffers, by name."""
        self._check(name)
        return {
            **dict(zip(self.names, self.values[name], strict=True)),
            **dict(zip(self.rest, self._live_rest, strict=True)),
        }

    def load(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take over averaged parameters, as :meth:`tensors` gave them (sharded like the average)."""
        self._check(name)
        with torch.no_grad():
            for own, key in zip(self.values[name], self.names, strict=True):
                own.copy_(tensors[key])

    @contextmanager
    def swap(self, name: str | None = None) -> Iterator[None]:
        """Inside, the module has the averaged weights; afterwards its own again, bit for bit."""
        name = name or self.default
        self._check(name)
        with torch.no_grad():
            own = [p.detach().clone() for p in self._live]
            _copy(self._live, self.values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self._live, own)

    def _check(self, name: str) -> None:
        if name not in self.averages:
            raise unknown("average", name, self.averages)


def _copy(to: list[Tensor], what: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(_locals(to), _locals(what))


def _locals(tensors: list[Tensor]) -> list[Tensor]:
    """This process's shards of sharded tensors; others as they are."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]  # type: ignore[operator]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in module.state_dict(keep_vars=True).items() if isinstance(p, Tensor)}


def _wide(p: Tensor) -> Tensor:
    return p if p.dtype in (torch.float32, torch.float64) else p.float()
