"""``UNet2DModel`` in ``DDPMPipeline`` and its kin: pixels, without conditions or with classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from condiff.conditions import Conditions
from condiff.errors import Incompatible
from condiff.interop.backbones.base import (
    Backbone,
    Family,
    check_labels,
    encoded_labels,
    filled,
    need,
    split_variance,
)


class Plain2D(Backbone):
    """``UNet2DModel``: unconditional, or with class labels that are always given; see :func:`split_variance`."""

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__(net, time_scale)
        classes = net.config.num_class_embeds
        self.condition_kinds = {"label": "label"} if classes else {}  # type: ignore[misc]

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        if not self.condition_kinds:
            return {}
        labels = filled(need(cond, "label", "a class"), None, "label")
        return {"class_labels": check_labels(labels, self.net.config.num_class_embeds - 1)}

    def said(self, x: Tensor, times: Tensor, told: dict[str, Any]) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return split_variance(self.call(x, times, **told), x.shape[1])


class Pixels(Family):
    """``DDPMPipeline``, ``DDIMPipeline``."""

    networks = ("UNet2DModel",)

    def check(self) -> None:
        super().check()
        kind = self.net.config.class_embed_type
        if kind is not None and not self.net.config.num_class_embeds:
            raise Incompatible(f"this network is told {kind!r} embeddings, not classes by number")

    def make_backbone(self) -> Backbone:
        return Plain2D(self.net)

    def words(self, entries: Sequence[Any]) -> Conditions:
        if not self.net.config.num_class_embeds:
            return super().words(entries)
        return encoded_labels(entries, self.net.config.num_class_embeds, self.device)
