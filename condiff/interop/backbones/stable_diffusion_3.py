"""Stable Diffusion 3 and 3.5: a flow told a prompt and a pooled one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.interop.backbones.base import Backbone, Family, keep_empty, prompt_and_pooled


class TextAndPooled(Backbone):
    """``SD3Transformer2DModel``: conditions ``prompt`` (B, L, D) and ``pooled`` (B, P); told 1000 t.

    Args:
        null: (L, D) and (P,), the empty prompt.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens", "pooled": "vector"}
    attention_option = "joint_attention_kwargs"

    def __init__(self, net: Any, null: tuple[Tensor, Tensor] | None = None, time_scale: float = 1000.0) -> None:
        super().__init__(net, time_scale)
        keep_empty(self, null)

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens, pooled = prompt_and_pooled(self, cond)
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


class StableDiffusion3(Family):
    """``StableDiffusion3Pipeline`` and ``StableDiffusion3Img2ImgPipeline``."""

    networks = ("SD3Transformer2DModel",)
    reference = ("prompt", "pooled")
    padded = 256  # by T5; CLIP has one length
    scale = 7.0

    def make_backbone(self) -> Backbone:
        return TextAndPooled(self.net, self.null(), time_scale=float(self.pipe.scheduler.config.num_train_timesteps))

    def null(self) -> tuple[Tensor, Tensor] | None:
        """The empty prompt, of a pipeline that has its text encoders."""
        if self.pipe.text_encoder is None:
            return None
        empty = self.words([""])
        return empty["prompt"].value[0], empty["pooled"].value[0]

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        self.text_encoders("text_encoder", "text_encoder_2")
        words = list(entries)
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            words, words, words, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.length
        )
        return Conditions({"prompt": Condition(tokens, "tokens"), "pooled": Condition(pooled, "vector")})
