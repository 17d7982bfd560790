"""``DiTPipeline``: latents told a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue
from condiff.interop.backbones.base import Backbone, Family, check_labels, encoded_labels, split_variance


class Classes(Backbone):
    """``DiTTransformer2DModel``: condition ``label``; the class after the last means none.

    See :func:`split_variance`.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"label": "label"}

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        null = self.net.config.num_embeds_ada_norm
        entry = cond.get("label")
        labels = torch.full(x.shape[:1], null, device=x.device) if entry is None else _or(entry, null)
        return {"class_labels": check_labels(labels, null)}

    def said(self, x: Tensor, times: Tensor, told: dict[str, Any]) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return split_variance(self.call(x, times, **told), x.shape[1])


def _or(entry: Condition, null: int) -> Tensor:
    return entry.value if entry.keep is None else torch.where(entry.keep, entry.value, null)


class DiT(Family):
    """``DiTPipeline``, whose positions aren't interpolated: it knows one size."""

    networks = ("DiTTransformer2DModel",)
    reference = ("label",)
    scale = 4.0

    def make_backbone(self) -> Backbone:
        return Classes(self.net)

    def checked_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        checked, trained = super().checked_size(size), self.trained_size()
        if checked != trained:
            raise BadValue(f"{type(self.net).__name__} knows one size, {trained} pixels, got {size}")
        return trained

    def words(self, entries: Sequence[Any]) -> Conditions:
        """Classes by name or number, which may be a text too."""
        names = getattr(self.pipe, "labels", None) or {}
        strange = [n for n in entries if isinstance(n, str) and n not in names and not n.isdecimal()]
        if strange:
            raise BadValue(f"unknown classes {strange}; this pipeline names {len(names)} classes")
        numbers = [names[n] if n in names else int(n) if isinstance(n, str) else n for n in entries]
        return encoded_labels(numbers, self.net.config.num_embeds_ada_norm, self.device)
