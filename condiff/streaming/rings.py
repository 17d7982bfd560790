"""Conditions that travel with the frames of a stream: rows move by one frame each tick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions, cat
from condiff.errors import BadValue

PARTS = ("value", "keep", "mask", "level", "noise")


def repeated(cond: Conditions, rows: int) -> Conditions:
    """One row for all of them."""
    return cond.rows(torch.zeros(rows, dtype=torch.long)) if cond else cond


def moved(new: Conditions, old: Conditions | None, delay: int, frames: int) -> Conditions:
    """Conditions of all rows after ``new`` ones came in: ``(delay + 1) frames`` rows, the newest first.

    Rows in front of which there is no frame yet are told what the first one is.

    Raises:
        BadValue: another number of rows, or other names than before.
    """
    if new and new.batch != frames:
        raise BadValue(f"{frames} frames came with conditions of {new.batch} rows")
    if old is None:
        return cat([new] * (delay + 1)) if new else new
    if set(old) != set(new):
        raise BadValue(f"frames are told the same names in every tick: {sorted(old)} before, {sorted(new)} now")
    return cat([new, old.rows(slice(0, delay * frames))]) if new and delay else new


def told_state(name: str, cond: Conditions | None) -> dict[str, Tensor]:
    """Conditions as tensors by name, ``name.entry.kind.part``."""
    parts = {(key, entry.kind, part): getattr(entry, part) for key, entry in (cond or {}).items() for part in PARTS}
    return {".".join((name, *words)): value for words, value in parts.items() if value is not None}


def read_told(name: str, state: Mapping[str, Tensor], device: Any) -> Conditions | None:
    """What :func:`told_state` wrote; None without entries in a stream that has run no tick."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(name + "."):
            entry, kind, part = key[len(name) + 1 :].rsplit(".", 2)
            found.setdefault((entry, kind), {})[part] = value.to(device)
    if not found:
        return Conditions() if int(state["ticks"][0]) else None
    return Conditions({entry: Condition(kind=kind, **parts) for (entry, kind), parts in found.items()})
