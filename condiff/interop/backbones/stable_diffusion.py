"""Stable Diffusion 1.5 and 2.1: latents told a prompt. Also what its image-to-image pipelines hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoises
from condiff.errors import Incompatible
from condiff.guidance import Distilled
from condiff.interop.backbones.base import Backbone, Family, filled, need
from condiff.interop.backbones.guidance_embedding import scale_kinds, scale_told, with_scale
from condiff.interop.backbones.inpainting import encoded_mask, mask_kinds, mask_told
from condiff.random import Source


class TextTokens(Backbone):
    """``UNet2DConditionModel`` of Stable Diffusion 1 and 2: condition ``prompt``, tokens (B, L, D). For inpainting also
    those of :func:`~condiff.interop.backbones.inpainting.mask_told`, and for networks that are told their guidance,
    as latent consistency models are, ``guidance`` (B,).

    Args:
        null: (L, D), the empty prompt, for rows without one.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens"}

    def __init__(self, net: Any, null: Tensor | None = None) -> None:
        super().__init__(net)
        self.condition_kinds = self.condition_kinds | mask_kinds(net) | scale_kinds(net)  # type: ignore[misc]
        self.register_buffer("null", null, persistent=False)

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        told = {"encoder_hidden_states": tokens.to(self.dtype), **mask_told(self.net, cond)}
        return {**told, **scale_told(self.net, cond, self.dtype)}

    def extended(self, conditions: Mapping[str, Any]) -> TextTokens:
        """A copy that is told its guidance; see :func:`~condiff.interop.backbones.guidance_embedding.with_scale`."""
        return type(self)(with_scale(self.net, conditions), self.null)  # type: ignore[arg-type]


class StableDiffusion(Family):
    """``StableDiffusionPipeline``, ``StableDiffusionImg2ImgPipeline``, ``StableDiffusionInpaintPipeline``."""

    networks = ("UNet2DConditionModel",)
    reference = ("prompt",)
    scale = 7.5
    more = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")

    def check(self) -> None:
        refuse_more(self.pipe, self.net, self.more)
        if not mask_kinds(self.net):
            super().check()

    def channels(self) -> int:
        return self.net.config.out_channels if mask_kinds(self.net) else super().channels()

    def encode(
        self,
        entries: Sequence[Any],
        image: Any = None,
        mask: Any = None,
        rng: int | torch.Generator | Source | None = None,
    ) -> Conditions:
        """Prompts; for inpainting also pictures and masks, see
        :func:`~condiff.interop.backbones.inpainting.encoded_mask`.

        Args:
            rng: draws the latents of the pictures; their means when None.
        """
        return self.words(entries).replace(**self.mask(len(entries), image, mask, rng))

    @property
    def pictures(self) -> dict[str, int]:
        return {"image": 3, "mask": 1} if mask_kinds(self.net) else {}

    def mask(self, count: int, image: Any, mask: Any, rng: Any) -> dict[str, Condition]:
        """The conditions of inpainting, for a network that is told them."""
        return encoded_mask(self.net, self.codec, image, mask, count, self.size, self.device, rng)

    def make_backbone(self) -> Backbone:
        return TextTokens(self.net, self.null())

    def guided(self, denoiser: Any, scale: Any, negative: Any, **options: Any) -> Denoises:
        if not scale_kinds(self.net):
            return super().guided(denoiser, scale, negative, **options)
        if negative is not None:
            raise Incompatible("this network is told its guidance in one call, and no negative prompt with it")
        return Distilled(denoiser, scale=self.scale if scale is None else scale, **options)

    def null(self) -> Tensor | None:
        """The empty prompt, of a pipeline that has its text encoder."""
        return None if self.pipe.text_encoder is None else self.words([""])["prompt"].value[0]

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        self.text_encoders("text_encoder")
        tokens, _ = self.pipe.encode_prompt(list(entries), self.device, 1, False)
        return Conditions({"prompt": Condition(tokens, "tokens")})


def refuse_more(pipe: Any, net: Any, names: Sequence[str]) -> None:
    """
    Raises:
        Incompatible: a network that is told one of these, or has an adapter beside it.
    """
    if getattr(pipe, "adapter", None) is not None:
        raise Incompatible(f"{type(pipe).__name__} has a {type(pipe.adapter).__name__}, which isn't known here")
    for name in names:
        if net.config.get(name) is not None:
            raise Incompatible(
                f"this network is told more than a prompt ({name} = {net.config[name]!r}): that isn't known here"
            )
