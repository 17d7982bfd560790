"""Conditions: named entries, each with a kind and a keep flag per sample.

An entry that is absent for a sample is *flagged* absent (``keep[i] = False``), never encoded as zeros; what a
network does with an absent entry (a learned null vector, an indicator channel) is the embedder's business.

Kinds:
    ``label``        (B,) integers
    ``scalar``       (B,) floats: a guidance weight, an age, a noise level
    ``vector``       (B, D)
    ``tokens``       (B, L, D) floats or (B, L) integer ids, with ``mask`` (B, L) of the valid ones
    ``map``          (B, C, *spatial), aligned with the sample
    ``frames``       (B, F, C, *spatial)
    ``endpoint``     the other end ``y`` of a process, of the sample's shape
    ``observation``  known values, of the sample's shape, with ``mask`` (1 = observed)
    ``known``        (B, L) boolean: which tokens or variables are given
    ``strength``     (B,) floats: how much a part of the model acts; 0 where it is absent
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, unknown

KINDS = ("label", "scalar", "vector", "tokens", "map", "frames", "endpoint", "observation", "known", "strength")
#: Kinds that belong to the process or to the model rather than to what is told: only naming them drops them.
BELONGING = ("endpoint", "observation", "known", "strength")
_NDIM = {"label": (1,), "scalar": (1,), "vector": (2,), "tokens": (2, 3), "known": (2,), "strength": (1,)}


@dataclass(frozen=True, eq=False)
class Condition:
    """One entry.

    Args:
        value: the tensor; its first dimension is the batch.
        kind: one of :data:`KINDS`.
        keep: (B,) booleans, False where the entry is absent; None when present for all.
        mask: validity of tokens, or observed positions.
        level: (B,) noise level of a corrupted condition, for networks that are told it.
        noise: what is added to its embedding (a training-time perturbation), of the embedding's shape.
    """

    value: Tensor
    kind: str
    keep: Tensor | None = None
    mask: Tensor | None = None
    level: Tensor | None = None
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("condition kind", self.kind, KINDS)
        if not isinstance(self.value, Tensor):
            raise BadType(f"a condition's value must be a tensor, got {type(self.value).__name__}")
        ndim = _NDIM.get(self.kind)
        if ndim and self.value.ndim not in ndim:
            raise BadValue(f"a {self.kind!r} condition has {ndim} dimensions, got shape {tuple(self.value.shape)}")
        if self.kind == "label" and (self.value.dtype.is_floating_point or self.value.dtype == torch.bool):
            raise BadType(f"a 'label' condition holds integers, got {self.value.dtype}")
        if self.kind in ("scalar", "strength") and not self.value.dtype.is_floating_point:
            raise BadType(f"a {self.kind!r} condition holds floats, got {self.value.dtype}")
        if self.keep is not None and (self.keep.dtype != torch.bool or self.keep.shape != self.value.shape[:1]):
            raise BadValue(
                f"keep must be booleans of shape {tuple(self.value.shape[:1])}, got "
                f"{self.keep.dtype} {tuple(self.keep.shape)}"
            )

    @property
    def batch(self) -> int:
        return self.value.shape[0]

    def kept(self) -> Tensor:
        """The keep flags, written out."""
        if self.keep is not None:
            return self.keep
        return torch.ones(self.batch, dtype=torch.bool, device=self.value.device)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Condition:
        """``fn`` applied to the value and to all its companions (indexing, moving, repeating)."""
        parts = {
            name: fn(part)
            for name in ("value", "keep", "mask", "level", "noise")
            if (part := getattr(self, name)) is not None
        }
        return replace(self, **parts)


class Conditions(Mapping[str, Condition]):
    """An immutable mapping of names to :class:`Condition`, all of one batch size."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Condition] | None = None) -> None:
        self._entries = dict(entries or {})
        for name, entry in self._entries.items():
            if not isinstance(entry, Condition):
                raise BadType(f"{name!r} is a {type(entry).__name__}: wrap it, Condition(value, kind)")
        sizes = {name: entry.batch for name, entry in self._entries.items()}
        if len(set(sizes.values())) > 1:
            raise BadValue(f"all conditions of a batch must have one batch size, got {sizes}")

    def __getitem__(self, name: str) -> Condition:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        parts = (f"{name}: {c.kind} {tuple(c.value.shape)}" for name, c in self.items())
        return f"Conditions({', '.join(parts)})"

    @property
    def batch(self) -> int | None:
        """The batch size, None without entries."""
        return next((entry.batch for entry in self._entries.values()), None)

    @property
    def source(self) -> Tensor | None:
        """The value of the entry of kind 'endpoint', if there is one."""
        return next((c.value for c in self._entries.values() if c.kind == "endpoint"), None)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Conditions:
        """``fn`` applied to every tensor."""
        return Conditions({name: entry.map(fn) for name, entry in self.items()})

    def to(self, device: Any) -> Conditions:
        return self.map(lambda x: x.to(device))

    def rows(self, index: Any) -> Conditions:
        """A subset of the batch."""
        return self.map(lambda x: x[index])

    def repeat(self, n: int) -> Conditions:
        """Each row n times in a row (``repeat_interleave``)."""
        return self.map(lambda x: x.repeat_interleave(n, dim=0))

    def keeping(self, name: str, keep: Tensor) -> Conditions:
        """The entry ``name`` kept only where ``keep`` (B,) is true (and where it already was)."""
        entry = self[name]
        return self.replace(**{name: replace(entry, keep=entry.kept() & keep.to(entry.value.device))})

    def drop(self, *names: str) -> Conditions:
        """The entries flagged absent for every sample; all droppable ones without names.

        Endpoints, observations, known positions and strengths (:data:`BELONGING`) are dropped by name only.

        Raises:
            BadValue: an entry that isn't there.
        """
        for name in names:
            if name not in self:
                raise unknown("condition", name, self)
        chosen = names or tuple(n for n, c in self.items() if c.kind not in BELONGING)
        out = dict(self._entries)
        for name in chosen:
            out[name] = replace(out[name], keep=torch.zeros_like(out[name].kept()))
        return Conditions(out)

    def for_kinds(self, kinds: Mapping[str, str]) -> Conditions:
        """As a model without an endpoint knows them: endpoints only where ``kinds`` has their name, of that kind."""
        out = {}
        for name, entry in self.items():
            if entry.kind != "endpoint":
                out[name] = entry
            elif name in kinds:
                out[name] = replace(entry, kind=kinds[name])
        return Conditions(out)

    def replace(self, **entries: Condition) -> Conditions:
        """With some entries replaced or added."""
        return Conditions({**self._entries, **entries})


def cat(parts: Sequence[Conditions]) -> Conditions:
    """Batches of conditions one after the other, as one batched call needs them.

    Raises:
        BadValue: parts with different names or kinds.
    """
    names = set(parts[0])
    if any(set(p) != names for p in parts):
        raise BadValue(f"can't join conditions with different names: {[sorted(p) for p in parts]}")
    out: dict[str, Condition] = {}
    for name in parts[0]:
        entries = [p[name] for p in parts]
        if len({e.kind for e in entries}) > 1:
            raise BadValue(f"can't join {name!r}: kinds {[e.kind for e in entries]} differ")
        shapes = [tuple(e.value.shape[1:]) for e in entries]
        if len(set(shapes)) > 1:
            raise BadValue(f"can't join {name!r}: shapes {shapes} differ; pad tokens to one length, with a mask")
        fields: dict[str, Any] = {"value": torch.cat([e.value for e in entries])}
        if any(e.keep is not None for e in entries):
            fields["keep"] = torch.cat([e.kept() for e in entries])
        for companion in ("mask", "level", "noise"):
            present = [getattr(e, companion) for e in entries]
            if all(p is not None for p in present):
                fields[companion] = torch.cat(present)
            elif any(p is not None for p in present):
                raise BadValue(f"can't join {name!r}: some parts have a {companion}, others none")
        out[name] = Condition(kind=entries[0].kind, **fields)
    return Conditions(out)


def _infer(name: str, value: Any, kinds: Mapping[str, str], device: Any) -> Condition:
    if isinstance(value, Condition):
        return value
    try:
        value = torch.as_tensor(value, device=device) if device is not None else torch.as_tensor(value)
    except (TypeError, ValueError) as error:
        raise BadType(f"condition {name!r} must hold numbers, got {str(value)[:60]!r}") from error
    if value.dtype == torch.float64:
        value = value.to(torch.get_default_dtype())
    kind = kinds.get(name)
    if kind is None:
        floating = value.dtype.is_floating_point
        kind = {1: "scalar" if floating else "label", 2: "vector" if floating else "tokens", 3: "tokens"}.get(
            value.ndim
        )
        kind = kind or ("map" if floating else None)
    if kind is None:
        raise BadValue(
            f"can't tell the kind of condition {name!r} {value.dtype} {tuple(value.shape)}: wrap it in Condition"
        )
    return Condition(value, kind)


def as_conditions(
    cond: Mapping[str, Any] | None, kinds: Mapping[str, str] | None = None, device: Any = None
) -> Conditions:
    """``None``, a mapping of tensors or lists, or Conditions -> Conditions.

    Bare tensors take the kind that the model declares in ``kinds``, else the one their dtype and number of
    dimensions say: integers (B,) label, floats (B,) scalar, (B, D) vector, (B, L, D) tokens, (B, C, ...) map.
    float64 values become the default dtype.
    """
    if cond is None:
        return Conditions()
    if isinstance(cond, Conditions):
        return cond
    if not isinstance(cond, Mapping):
        raise BadType(
            f"conditions are a mapping of names to tensors, such as {{'label': y}}, got {type(cond).__name__}"
        )
    return Conditions({name: _infer(name, value, kinds or {}, device) for name, value in cond.items()})
