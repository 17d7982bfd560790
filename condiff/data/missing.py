"""Patterns of missing values along a context: at random, or a blackout at its beginning or end (Kollovieh 2023)."""

from __future__ import annotations

import torch

from condiff.errors import BadValue, unknown
from condiff.random import Source, as_source
from condiff.typing import Bool, Tensor

PATTERNS = ("none", "random", "beginning", "end")


def missing(
    pattern: str, length: int, rng: int | torch.Generator | Source | None = None, *, share: float = 0.5
) -> Bool[Tensor, " length"]:
    """Which steps of a context are hidden, (length,).

    Args:
        pattern: ``"none"``; ``"random"``, a random choice (RM); ``"beginning"`` (BM-B) or ``"end"`` (BM-E), a blackout.
        length: of the context.
        rng: of the random choice.
        share: how much is hidden, rounded to whole steps.

    Raises:
        BadValue: an unknown pattern, a share outside (0, 1).
    """
    if pattern not in PATTERNS:
        raise unknown("pattern of missing values", pattern, PATTERNS)
    if not 0.0 < share < 1.0:
        raise BadValue(f"share lies in (0, 1), got {share}")
    count, steps = round(share * length), torch.arange(length)
    if pattern == "random":
        steps = as_source(rng).uniform((length,), torch.float64).argsort().argsort()
    return {"none": steps < 0, "end": steps >= length - count}.get(pattern, steps < count)
