"""CogVideoX 1.0 and 1.5, text to video."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.conditions import Conditions
from condiff.interop.backbones.base import Backbone, filled, need
from condiff.interop.backbones.clips import Clips, prompts
from condiff.interop.video_vae import CogVideoXVAE
from condiff.process import Level


class Expert3D(Backbone):
    """``CogVideoXTransformer3DModel``: condition ``prompt`` (B, L, D); the state is (B, F, C, H, W).

    Args:
        null: (L, D), the empty prompt.
        rotary: cosines and sines of the positions; None for a network with positions of its own.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens"}

    def __init__(self, net: Any, null: Tensor | None = None, rotary: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(net)
        self.register_buffer("null", null, persistent=False)
        self.rotary = rotary

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        rotary = None if self.rotary is None else tuple(part.to(x.device) for part in self.rotary)
        return {"encoder_hidden_states": tokens.to(self.dtype), "image_rotary_emb": rotary}


class CogVideoX(Clips):
    """``CogVideoXPipeline``. Version 1.5 takes latent frames in pairs: for 81 frames its pipeline samples 85, which is
    what ``frames=`` then is here, and shows the last 81.
    """

    networks = ("CogVideoXTransformer3DModel",)
    reference = ("prompt",)
    padded = 226
    longest = 226
    scale = 6.0

    @property
    def stride(self) -> int:  # type: ignore[override]
        return self.net.config.patch_size_t or 1

    def make_codec(self) -> Codec | None:
        return None if self.pipe.vae is None else CogVideoXVAE(self.pipe.vae)

    def make_backbone(self) -> Backbone:
        null = None if self.pipe.text_encoder is None else self.words([""])["prompt"].value[0]
        rotary = None
        if self.net.config.use_rotary_positional_embeddings:
            rotary = self.pipe._prepare_rotary_positional_embeddings(*self.size, self.shape[0], torch.device("cpu"))
        return Expert3D(self.net, null, rotary)

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        return prompts(self, entries)

    def trained_size(self) -> tuple[int, int]:
        config = self.net.config
        return config.sample_height * self.factor, config.sample_width * self.factor

    def trained_frames(self) -> int:
        latents = 1 + (self.net.config.sample_frames - 1) // self.every
        return 1 + (math.ceil(latents / self.stride) * self.stride - 1) * self.every


def dynamic_scale(scale: float, steps: int) -> Callable[[Level], float]:
    """The scale of ``use_dynamic_cfg=True`` as a function of the level, for ``wrapped.guided(dynamic_scale(6, 50))``:

    ``1 + scale (1 - cos(pi ((steps - index) / steps)^5)) / 2``. The index counts the levels of training, as in the
    pipeline, not the steps of sampling, so that the scale oscillates where ``index`` is larger than ``steps``.
    """

    def at(level: Level) -> float:
        turn = math.pi * ((steps - float(level.model_time)) / steps) ** 5.0
        return 1.0 + scale * (1.0 - math.cos(turn)) / 2.0

    return at
