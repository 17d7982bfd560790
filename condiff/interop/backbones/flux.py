"""FLUX.1: a flow on latents that the transformer sees as packed patches, told how strongly it is guided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import GUIDANCE, Condition, Conditions
from condiff.denoiser import Denoises
from condiff.errors import Incompatible
from condiff.guidance import Distilled
from condiff.interop.backbones.base import (
    Backbone,
    Family,
    keep_empty,
    need,
    prompt_and_pooled,
    refuse_pictures,
)
from condiff.networks.pairing import Pairing

PATCH = 2  # latents along a side of a token


def packed(z: Tensor) -> Tensor:
    """Latents (B, C, H, W) as tokens (B, H/2 W/2, 4 C)."""
    b, c, h, w = z.shape
    z = z.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return z.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH**2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/2 W/2, 4 C) as latents (B, C, H, W)."""
    b, _, channels = tokens.shape
    z = tokens.reshape(b, height // PATCH, width // PATCH, channels // PATCH**2, PATCH, PATCH)
    return z.permute(0, 3, 1, 4, 2, 5).reshape(b, channels // PATCH**2, height, width)


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Where the tokens of (height, width) latents lie: (H/2 W/2, 3), a zero, row and column."""
    rows, columns = (torch.arange(n // PATCH) for n in (height, width))
    grid = torch.stack(torch.meshgrid(torch.zeros(1), rows.float(), columns.float(), indexing="ij"), dim=-1)
    return grid.reshape(-1, 3).to(like)


class PackedFlow(Backbone):
    """``FluxTransformer2DModel``: conditions ``prompt`` (B, L, D), ``pooled`` (B, P) and, where it was distilled from
    a guided model, ``guidance`` (B,). The state is unpacked latents (B, C, H, W).

    Args:
        null: (L, D) and (P,), the empty prompt.
    """

    attention_option = "joint_attention_kwargs"

    def __init__(self, net: Any, null: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(net)
        kinds = {"prompt": "tokens", "pooled": "vector"}
        self.condition_kinds = {**kinds, GUIDANCE: "scalar"} if net.config.guidance_embeds else kinds  # type: ignore[misc]
        keep_empty(self, null)

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens, pooled = prompt_and_pooled(self, cond)
        told = {"encoder_hidden_states": tokens, "pooled_projections": pooled}
        if self.net.config.guidance_embeds:
            told["guidance"] = need(cond, GUIDANCE, "how strongly it is guided").value.float()
        return {**told, "txt_ids": tokens.new_zeros(tokens.shape[1], 3)}

    def placed(self, pairing: Pairing, told: dict[str, Any]) -> Pairing:
        return replace(pairing, before=told["encoder_hidden_states"].shape[1])

    def said(self, x: Tensor, times: Tensor, told: dict[str, Any]) -> Tensor:
        height, width = x.shape[-2:]
        return unpacked(self.call(packed(x), times, img_ids=places(height, width, x), **told), height, width)


class Flux(Family):
    """``FluxPipeline`` and ``FluxImg2ImgPipeline``: dev, which is told its guidance, and schnell, which isn't."""

    networks = ("FluxTransformer2DModel",)
    padded = 512
    scale = 3.5

    def check(self) -> None:
        refuse_pictures(self.net, self.net.config.in_channels)

    def make_backbone(self) -> Backbone:
        return PackedFlow(self.net, self.null())

    def null(self) -> tuple[Tensor, Tensor] | None:
        """The empty prompt, of a pipeline that has its text encoders."""
        if self.pipe.text_encoder is None or self.pipe.text_encoder_2 is None:
            return None
        empty = self.words([""])
        return empty["prompt"].value[0], empty["pooled"].value[0]

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        self.text_encoders("text_encoder", "text_encoder_2")
        tokens, pooled, _ = self.pipe.encode_prompt(list(entries), device=self.device, max_sequence_length=self.length)
        return Conditions({"prompt": Condition(tokens, "tokens"), "pooled": Condition(pooled, "vector")})

    def guided(self, denoiser: Any, scale: Any, negative: Any, **options: Any) -> Denoises:
        if not self.net.config.guidance_embeds:
            return super().guided(denoiser, scale, negative, **options)
        if negative is not None:
            raise Incompatible(
                "this network is told its guidance in one call: a second one for negative prompts is "
                "Free(wrapped.guided(3.5), scale=2.0, negative=wrapped.encode([...]))"
            )
        return Distilled(denoiser, scale=self.scale if scale is None else scale, **options)

    # Sizes: twice the codec's factor, as tokens are patches

    @property
    def multiple(self) -> int:
        return PATCH * self.factor

    def trained_size(self) -> tuple[int, int]:
        side = self.pipe.default_sample_size * self.factor
        return side, side

    def channels(self) -> int:
        return self.net.config.in_channels // PATCH**2

    def tokens(self) -> int:
        return (self.shape[-2] // PATCH) * (self.shape[-1] // PATCH)

    def grid(self, steps: int, **options: Any) -> Tensor:
        if not self.pipe.scheduler.config.get("use_flow_sigmas", False):
            options.setdefault("sigmas", torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist())
        return super().grid(steps, **options)
