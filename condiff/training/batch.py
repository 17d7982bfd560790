"""Batch: samples with everything that an objective is told about them, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condiff.conditions import Condition, Conditions, as_conditions
from condiff.errors import BadType, BadValue, unknown

FIELDS = ("x", "cond", "weight", "mask", "source")
Tree = Tensor | dict[str, Tensor]


def each(fn: Callable[..., Any], value: Any, *others: Any) -> Any:
    """``fn`` on a tensor, or on every tensor of a dictionary (and of others of the same names)."""
    if isinstance(value, Mapping):
        return {name: fn(v, *(o[name] for o in others)) for name, v in value.items()}
    return fn(value, *others)


def leaves(value: Any) -> list[Tensor]:
    """The tensors of a tensor or a dictionary."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples and what is known of them.

    Args:
        x: samples (B, ...), or a dictionary of the variables of joint states.
        cond: conditions; an endpoint is an entry of kind 'endpoint'.
        weight: (B,) importance of each row.
        mask: broadcasts to x; which elements count.
    """

    x: Tree
    cond: Conditions
    weight: Tensor | None = None
    mask: Tree | None = None

    def __len__(self) -> int:
        return leaves(self.x)[0].shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """``fn`` applied to every tensor."""
        other = [None if v is None else each(fn, v) for v in (self.weight, self.mask)]
        return Batch(each(fn, self.x), self.cond.map(fn), *other)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        return self.map(lambda v: v.to(device, non_blocking=non_blocking))


def as_batch(batch: Batch | Mapping[str, Any], kinds: Mapping[str, str] | None = None) -> Batch:
    """``{"x": ..., "cond": {...}, "weight": ..., "mask": ..., "source": ...}`` -> Batch; all but x may be absent.

    Args:
        kinds: kinds of the conditions that are given as bare tensors.

    Raises:
        BadType, BadValue: an unknown key, no x, rows or shapes that don't match.
    """
    if isinstance(batch, Batch):
        return batch
    if not isinstance(batch, Mapping):
        raise BadType(f"a batch is a mapping such as {{'x': x, 'cond': {{'label': y}}}}, got {type(batch).__name__}")
    for key in batch:
        if key not in FIELDS:
            raise unknown("entry of a batch (conditions go under 'cond')", key, FIELDS)
    x: Any = batch.get("x")
    weight, mask, source = (batch.get(k) for k in ("weight", "mask", "source"))
    if not all(isinstance(v, Tensor) for v in leaves(x)):
        raise BadType(f"a batch needs x, a tensor (B, ...) or a dictionary of them, got {type(x).__name__}")
    cond = as_conditions(batch.get("cond"), kinds)
    if source is not None:
        cond = cond.replace(source=Condition(source, "endpoint"))
    _check(x, cond, weight, mask)
    return Batch(x, cond, weight, mask)


def _check(x: Tree, cond: Conditions, weight: Tensor | None, mask: Tree | None) -> None:
    rows = {v.shape[0] if v.ndim else 0 for v in leaves(x)}
    if len(rows) != 1 or 0 in rows:
        raise BadValue(f"a batch needs at least one row, and all variables the same number: got x of {_shapes(x)}")
    (rows,) = rows
    if cond.batch not in (None, rows):
        raise BadValue(f"x has {rows} rows, but its conditions {cond.batch}")
    if weight is not None and weight.shape != (rows,):
        raise BadValue(f"weight must have shape ({rows},), one per row, got {tuple(weight.shape)}")
    if mask is not None:
        if isinstance(mask, Mapping) != isinstance(x, Mapping) or (isinstance(x, Mapping) and set(mask) != set(x)):
            raise BadValue("the mask of joint states is a dictionary over the same variables")
        each(_check_mask, mask, x)


def _check_mask(mask: Tensor, x: Tensor) -> None:
    if mask.ndim != x.ndim or not all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
        raise BadValue(f"mask of shape {tuple(mask.shape)} must broadcast to x {tuple(x.shape)}")


def _shapes(x: Tree) -> str:
    return f"shape {each(lambda v: tuple(v.shape), x)}"
