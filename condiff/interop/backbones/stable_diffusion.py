"""Stable Diffusion 1.5 and 2.1: latents told a prompt. Also what its image-to-image pipelines hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.errors import Incompatible
from condiff.interop.backbones.base import Backbone, Family, filled, need


class TextTokens(Backbone):
    """``UNet2DConditionModel`` of Stable Diffusion 1 and 2: condition ``prompt``, tokens (B, L, D).

    Args:
        null: (L, D), the empty prompt, for rows without one.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens"}

    def __init__(self, net: Any, null: Tensor | None = None) -> None:
        super().__init__(net)
        self.register_buffer("null", null, persistent=False)

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        return {"encoder_hidden_states": tokens.to(self.dtype)}


class StableDiffusion(Family):
    """``StableDiffusionPipeline`` and ``StableDiffusionImg2ImgPipeline``."""

    networks = ("UNet2DConditionModel",)
    reference = ("prompt",)
    scale = 7.5
    more = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")

    def check(self) -> None:
        super().check()
        refuse_more(self.net, self.more)

    def make_backbone(self) -> Backbone:
        return TextTokens(self.net, self.null())

    def null(self) -> Tensor | None:
        """The empty prompt, of a pipeline that has its text encoder."""
        return None if self.pipe.text_encoder is None else self.words([""])["prompt"].value[0]

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        self.text_encoders("text_encoder")
        tokens, _ = self.pipe.encode_prompt(list(entries), self.device, 1, False)
        return Conditions({"prompt": Condition(tokens, "tokens")})


def refuse_more(net: Any, names: Sequence[str]) -> None:
    """
    Raises:
        Incompatible: a network that is told one of these.
    """
    for name in names:
        if net.config.get(name) is not None:
            raise Incompatible(
                f"this network is told more than a prompt ({name} = {net.config[name]!r}): that isn't known here"
            )
