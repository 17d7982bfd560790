"""Guided: what wraps denoisers and is one; and one batched call for several conditions.

Strengths are numbers, tensors over the leading dimensions of the state (``(B,)`` per row, ``(B, F)`` or ``(1, F)``
per frame), or functions of the :class:`~condiff.process.Level`: ``lambda level: 1.0 + 3.0 * level.t``.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions, cat
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, Incompatible
from condiff.fields import checked
from condiff.process import Prediction, TokenPrediction
from condiff.process.algebra import Weight

States = Any  # a tensor, or a dictionary of them for a joint process
Strength = float | Tensor | Callable[[Any], Weight]
Cond = None | Mapping[str, Any] | Conditions


class Guided(ABC):
    """Base of the wrappers: passes on what a sampler asks of a denoiser. Subclasses are frozen dataclasses."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @property
    def members(self) -> tuple[Denoises, ...]:
        """The denoisers inside; the first one says process and shape."""
        return (self.denoiser,)  # type: ignore[attr-defined]

    @property
    def process(self) -> Any:
        return self.members[0].process

    @property
    def shape(self) -> Any:
        return self.members[0].shape

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of all conditions that a member declares."""
        return {k: v for m in reversed(self.members) for k, v in (getattr(m, "kinds", None) or {}).items()}

    @property
    def targets(self) -> Any:
        """What the first member predicts, where it says so."""
        return getattr(self.members[0], "targets", None)

    @property
    def space(self) -> str | None:
        """What the first member's samples are; see :class:`~condiff.denoiser.Denoiser`."""
        return getattr(self.members[0], "space", None)

    def parameters(self) -> Iterator[Tensor]:
        """Of the networks inside."""
        for member in self.members:
            if callable(getattr(member, "parameters", None)):
                yield from member.parameters()  # type: ignore[attr-defined]

    @property
    def step_hooks(self) -> tuple[Any, ...]:
        """Hooks that a member with a memory needs in the loop."""
        return tuple(hook for m in self.members for hook in getattr(m, "step_hooks", ()))

    def start(self) -> None:
        """Begin a new trajectory."""
        for member in self.members:
            if hasattr(member, "start"):
                member.start()  # type: ignore[attr-defined]

    def __call__(self, x_t: States, t: Any, cond: Cond = None) -> Any:
        level = self.process.at(t)
        return self.predict(x_t, level, as_conditions(cond, self.kinds, first(x_t).device))

    @abstractmethod
    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        """The guided prediction: of x_t, of tokens, or a dictionary of them for a joint state."""

    def __repr__(self) -> str:
        fields = [f.name for f in dataclasses.fields(self) if f.repr]  # type: ignore[arg-type]
        told = ", ".join(f"{n}={getattr(self, n)!r}" for n in fields if n not in ("denoiser", "denoisers"))
        inside = ", ".join(repr(m) if isinstance(m, Guided) else type(m).__name__ for m in self.members)
        return f"{type(self).__name__}({inside}; {told})"


def check_denoiser(denoiser: Any) -> None:
    """
    Raises:
        BadType: something that isn't a denoiser.
    """
    if isinstance(denoiser, type) or not hasattr(denoiser, "process"):
        raise BadType(f"guidance wraps a denoiser (process, shape, a call), got {denoiser!r}")


def check_one_state(process: Any, who: str) -> None:
    """
    Raises:
        Incompatible: tokens or a joint state, for guidance that needs one continuous state.
    """
    if not hasattr(process, "noise_law"):
        raise Incompatible(f"{who} is for one continuous state, not for {process}")


def first(x: States) -> Tensor:
    """A tensor of the state, which tells batch and device."""
    return x if isinstance(x, Tensor) else next(iter(x.values()))


# Strengths


def check_strength(value: Any, name: str) -> None:
    """
    Raises:
        BadType: neither a number, a tensor nor a function.
        BadValue: not finite.
    """
    if isinstance(value, Tensor):
        if value.ndim and not bool(torch.isfinite(value).all()):
            raise BadValue(f"{name} must be finite, got {value}")
    elif isinstance(value, bool) or not (isinstance(value, int | float) or callable(value)):
        raise BadType(f"{name} must be a number, a tensor or a function of the level, got {value!r}")
    if (isinstance(value, int | float) or (isinstance(value, Tensor) and not value.ndim)) and not math.isfinite(value):
        raise BadValue(f"{name} must be finite, got {value}")


def strength(value: Strength, level: Any, x: States, outside: float = 1.0, interval: Any = None) -> Any:
    """The strength at a level: a float, or a float64 tensor over the leading dimensions of ``x``; ``outside`` where t
    doesn't lie in the interval. For a joint state a dictionary of them, each by its variable's level.

    Raises:
        BadValue: a tensor that doesn't match ``x``.
    """
    if isinstance(x, dict):
        return {name: strength(value, level[name], x[name], outside, interval) for name in x}
    return within(_strength(value, level, x), outside, interval, level.t)


def _strength(value: Strength, level: Any, x: Tensor) -> Weight:
    if not isinstance(value, Tensor) and callable(value):
        value = value(level)
    if not isinstance(value, Tensor):
        return float(value)
    if value.ndim == 0:
        return value.double()
    fits = value.ndim <= x.ndim and all(
        v == n or (v == 1 and value.ndim > 1) for v, n in zip(value.shape, x.shape, strict=False)
    )
    if not fits:
        raise BadValue(
            f"a strength of shape {tuple(value.shape)} must match the leading dimensions of {tuple(x.shape)}"
        )
    return value.double()


def check_interval(interval: tuple[float, float] | None) -> None:
    if interval is None:
        return
    if not isinstance(interval, tuple | list) or not all(isinstance(v, int | float) for v in interval):
        raise BadType(f"interval must be (low, high), two numbers, got {interval!r}")
    if len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise BadValue(f"interval must be (low, high) with 0 <= low <= high <= 1, got {interval}")


def within(value: Weight, outside: float, interval: tuple[float, float] | None, t: Weight) -> Weight:
    """``value`` for low <= t <= high, else ``outside``."""
    if interval is None:
        return value
    low, high = interval
    if not isinstance(t, Tensor):
        return value if low <= t <= high else outside
    value = torch.as_tensor(value, dtype=torch.float64, device=t.device)
    ndim = max(t.ndim, value.ndim)
    t, value = (w.reshape(w.shape + (1,) * (ndim - w.ndim)) if w.ndim else w for w in (t, value))
    return torch.where((low <= t) & (t <= high), value, outside)


def always(weight: Any, number: float) -> bool:
    """Whether a strength is this number, for all variables."""
    if isinstance(weight, dict):
        return all(always(w, number) for w in weight.values())
    return not isinstance(weight, Tensor) and weight == number


# Evaluations


def repeated(x: States, n: int) -> States:
    """n copies of the batch, one after the other."""
    return {k: torch.cat([v] * n) for k, v in x.items()} if isinstance(x, dict) else torch.cat([x] * n)


def repeat_level(level: Any, n: int) -> Any:
    """The level of n copies of the batch."""
    if isinstance(level, dict):
        return {name: repeat_level(one, n) for name, one in level.items()}
    if not isinstance(level.t, Tensor) or level.t.ndim == 0:
        return level
    return type(level)(*(torch.cat([c] * n) if isinstance(c, Tensor) else c for c in level))


def evaluate(
    denoiser: Denoises, x_t: States, level: Any, conds: Sequence[Conditions], joined: Conditions | None = None
) -> list[Any]:
    """One prediction per element of ``conds``, from one call with the batch repeated.

    ``joined``: ``cat(conds)``, when the caller keeps it.
    """
    n = len(conds)
    if n == 1:
        return [denoiser(x_t, level, conds[0])]
    joined = cat(conds) if joined is None else joined
    said = denoiser(repeated(x_t, n), repeat_level(level, n), joined)
    return [part(said, i, x_t, level) for i in range(n)]


def part(said: Any, i: int, x_t: States, level: Any) -> Any:
    """The i-th copy's prediction."""
    if isinstance(said, dict):
        return {name: part(one, i, x_t[name], level[name]) for name, one in said.items()}
    batch = x_t.shape[0]
    rows, total = slice(i * batch, (i + 1) * batch), said.x_t.shape[0]

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.ndim and value.shape[0] == total else value
        if isinstance(value, Prediction | TokenPrediction):
            return part(value, i, x_t, level)
        return [cut(v) for v in value] if isinstance(value, list | tuple) else value

    aux = {k: cut(v) for k, v in said.aux.items()}
    if isinstance(said, TokenPrediction):
        return TokenPrediction(x_t, level, said.log_probs[rows], aux=aux)
    source = None if said.source is None else said.source[rows]
    return Prediction(x_t, level, {k: v[rows] for k, v in said.values.items()}, source, aux)


class Remembered:
    """The last result of a function of the conditions: they stay the same object during a trajectory."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any] = (None, None)

    def __call__(self, fn: Callable[[Conditions, int], Any], cond: Conditions, batch: int) -> Any:
        key, value = self._last
        if key is None or key[0] is not cond or key[1] != batch:
            value = fn(cond, batch)
            self._last = ((cond, batch), value)
        return value
