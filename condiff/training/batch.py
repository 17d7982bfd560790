"""Batch: samples with everything that an objective is told about them, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condiff.conditions import Condition, Conditions, as_conditions
from condiff.errors import BadType, BadValue, unknown

FIELDS = ("x", "cond", "weight", "mask", "source")


@dataclass(frozen=True, eq=False)
class Batch:
    """Args:
    x: samples (B, ...).
    cond: conditions; an endpoint is an entry of kind 'endpoint'.
    weight: (B,) importance of each row.
    mask: broadcasts to x; which elements count.
    """

    x: Tensor
    cond: Conditions
    weight: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """``fn`` applied to every tensor."""
        other = [None if v is None else fn(v) for v in (self.weight, self.mask)]
        return Batch(fn(self.x), self.cond.map(fn), *other)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        return self.map(lambda v: v.to(device, non_blocking=non_blocking))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``start:stop``."""
        return self.map(lambda v: v[start:stop] if v.ndim and v.shape[0] == len(self) else v)


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
    x, weight, mask, source = (batch.get(k) for k in ("x", "weight", "mask", "source"))
    if not isinstance(x, Tensor):
        raise BadType(f"a batch needs x, a tensor (B, ...), got {type(x).__name__}")
    cond = as_conditions(batch.get("cond"), kinds)
    if source is not None:
        cond = cond.replace(source=Condition(source, "endpoint"))
    _check(x, cond, weight, mask)
    return Batch(x, cond, weight, mask)


def _check(x: Tensor, cond: Conditions, weight: Tensor | None, mask: Tensor | None) -> None:
    if x.ndim == 0 or x.shape[0] == 0:
        raise BadValue(f"a batch needs at least one row, got x of shape {tuple(x.shape)}")
    if cond.batch not in (None, x.shape[0]):
        raise BadValue(f"x has {x.shape[0]} rows, but its conditions {cond.batch}")
    if weight is not None and weight.shape != x.shape[:1]:
        raise BadValue(f"weight must have shape ({x.shape[0]},), one per row, got {tuple(weight.shape)}")
    if mask is not None:
        fits = mask.ndim == x.ndim and all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True))
        if not fits:
            raise BadValue(
                f"mask of shape {tuple(mask.shape)} must broadcast to x {tuple(x.shape)}, dimension by dimension"
            )
