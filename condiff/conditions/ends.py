"""Endpoints that are drawn from what is given: the frame before or the frame after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from condiff.conditions.condition import Condition, Conditions
from condiff.errors import BadValue, unknown
from condiff.fields import checked
from condiff.random import as_source

SIDES = {"prev": -1.0, "next": 1.0}


@dataclass(frozen=True, kw_only=True)
@checked
class EitherEnd:
    """One of two given frames becomes the endpoint, and the side says which: -1 the first, 1 the second.

    In training a fair coin for each row, outside the named side. Conditions that hold endpoint and side are left as
    they are.

    Args:
        frames: the entry with the frames, (B, 2, *shape).
        endpoint, side: names of the entries that are added, of kinds 'endpoint' and 'scalar'.
        sampling: ``"prev"`` or ``"next"``: the side outside training.

    Raises:
        BadValue: no such entry, or one that doesn't hold two frames.
    """

    frames: str = "frames"
    endpoint: str = "endpoint"
    side: str = "side"
    sampling: str = "next"

    def __post_init__(self) -> None:
        if self.sampling not in SIDES:
            raise unknown("side", self.sampling, SIDES)

    def __call__(self, cond: Conditions, t: Any = None, rng: Any = None, training: bool = True) -> Conditions:
        if self.endpoint in cond and self.side in cond:
            return cond
        if self.frames not in cond:
            raise unknown("condition", self.frames, cond)
        both = cond[self.frames].value
        if both.ndim < 3 or both.shape[1] != 2:
            raise BadValue(f"{self.frames!r} must hold two frames a row, (B, 2, ...), got {tuple(both.shape)}")
        rows, device = both.shape[0], both.device
        if training:
            second = as_source(rng).bernoulli(0.5, (rows,), device)
        else:
            second = torch.full((rows,), self.sampling == "next", device=device)
        end = both[torch.arange(rows, device=device), second.long()]
        side = torch.where(second, 1.0, -1.0).to(torch.float32)
        return cond.replace(**{self.endpoint: Condition(end, "endpoint"), self.side: Condition(side, "scalar")})
