"""Stable Diffusion XL: two text encoders, a pooled prompt, and the size of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue, Incompatible
from condiff.interop.backbones.base import Backbone, keep_empty, need, prompt_and_pooled
from condiff.interop.backbones.guidance_embedding import scale_kinds, scale_told, with_scale
from condiff.interop.backbones.inpainting import mask_kinds, mask_told
from condiff.interop.backbones.stable_diffusion import StableDiffusion
from condiff.random import Source


class TextAndSize(Backbone):
    """``UNet2DConditionModel`` of Stable Diffusion XL: conditions ``prompt`` (B, L, D), ``pooled`` (B, P) and ``size``
    (B, 6): height and width of the original, top and left of the crop, height and width of the sample, in pixels.

    Rows without a prompt are told their size all the same, as in the pipeline.

    Args:
        null: (L, D) and (P,), for rows without a prompt.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens", "pooled": "vector", "size": "vector"}

    def __init__(self, net: Any, null: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(net)
        self.condition_kinds = self.condition_kinds | mask_kinds(net) | scale_kinds(net)  # type: ignore[misc]
        keep_empty(self, null)

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens, pooled = prompt_and_pooled(self, cond)
        size = need(cond, "size", "the size of the picture").value
        added = {"text_embeds": pooled, "time_ids": size.to(self.dtype)}
        told = {"encoder_hidden_states": tokens, "added_cond_kwargs": added}
        return {**told, **mask_told(self.net, cond), **scale_told(self.net, cond, self.dtype)}

    def extended(self, conditions: Mapping[str, Any]) -> TextAndSize:
        """A copy that is told its guidance; see :func:`~condiff.interop.backbones.guidance_embedding.with_scale`."""
        null = None if self.null is None else (self.null, self.null_pooled)
        return type(self)(with_scale(self.net, conditions), null)  # type: ignore[arg-type]


class StableDiffusionXL(StableDiffusion):
    """``StableDiffusionXLPipeline``, ``StableDiffusionXLImg2ImgPipeline``, ``StableDiffusionXLInpaintPipeline``, but no
    refiner.
    """

    reference = ("prompt", "pooled")
    scale = 5.0
    more = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")

    @classmethod
    def takes(cls, pipe: Any, net: Any) -> bool:
        text_time = net.config.get("addition_embed_type") == "text_time"
        return super().takes(pipe, net) and text_time and hasattr(pipe, "text_encoder_2")

    def check(self) -> None:
        super().check()
        if self.pipe.config.get("requires_aesthetics_score"):
            raise Incompatible("a refiner, which is told a score of its picture, isn't known here")

    def make_backbone(self) -> Backbone:
        return TextAndSize(self.net, self.null())

    def null(self) -> tuple[Tensor, Tensor] | None:  # type: ignore[override]
        """What rows without a prompt are told, of a pipeline that has its text encoders: zeros where it says so."""
        if self.pipe.text_encoder_2 is None:
            return None
        empty = self.words([""])
        null = empty["prompt"].value[0], empty["pooled"].value[0]
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            return torch.zeros_like(null[0]), torch.zeros_like(null[1])
        return null

    def encode(
        self,
        entries: Sequence[Any],
        image: Any = None,
        mask: Any = None,
        rng: int | torch.Generator | Source | None = None,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
    ) -> Conditions:
        """Prompts; see :meth:`StableDiffusion.encode` for the rest.

        Args:
            original_size: height and width in pixels that the picture is said to have had before it was cropped; those
                of the sample by default, as ``target_size``.
            crop: top and left of that (``crops_coords_top_left`` of the pipeline).
            target_size: height and width of what was cropped.
        """
        told = super().encode(entries, image, mask, rng)
        numbers = [*(original_size or self.size), *crop, *(target_size or self.size)]
        if len(numbers) != 6:
            raise BadValue(
                f"sizes are (height, width) and a crop is (top, left), got {original_size}, {crop}, {target_size}"
            )
        size = torch.tensor(numbers, dtype=torch.float32, device=told["pooled"].value.device)
        return told.replace(size=Condition(size.expand(len(entries), 6), "vector"))

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        self.text_encoders("text_encoder", "text_encoder_2")
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            list(entries), device=self.device, do_classifier_free_guidance=False
        )
        return Conditions({"prompt": Condition(tokens, "tokens"), "pooled": Condition(pooled, "vector")})
