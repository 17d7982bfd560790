"""Wan 2.1 and 2.2, text to video: a flow, with one network or one for each half of the noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from condiff.codecs import Codec
from condiff.conditions import Conditions
from condiff.errors import Incompatible
from condiff.interop.backbones.base import Backbone, filled, need, refuse_pictures
from condiff.interop.backbones.clips import Clips, prompts
from condiff.interop.video_vae import WanVAE


class Flow3D(Backbone):
    """``WanTransformer3DModel``: condition ``prompt`` (B, L, D); the state is (B, F, C, H, W).

    Args:
        null: (L, D), the empty prompt.
        per_token: told one time per token, and so also one per frame (Wan 2.2 TI2V).
    """

    condition_kinds: ClassVar[dict[str, str]] = {"prompt": "tokens"}

    def __init__(
        self, net: Any, null: Tensor | None = None, time_scale: float = 1000.0, per_token: bool = False
    ) -> None:
        super().__init__(net, time_scale)
        self.register_buffer("null", null, persistent=False)
        self.per_token = per_token

    def times(self, time: Tensor, x: Tensor) -> Tensor:
        if not self.per_token:
            return super().times(time, x)
        _, rows, columns = self.net.config.patch_size
        time = time[:, None] if time.ndim == 1 else time
        per_frame = (x.shape[-2] // rows) * (x.shape[-1] // columns)
        return time.expand(x.shape[:2]).repeat_interleave(per_frame, dim=1)

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        tokens = filled(need(cond, "prompt", "a prompt"), self.null, "prompt")  # type: ignore[arg-type]
        return {"encoder_hidden_states": tokens.to(self.dtype)}

    def said(self, x: Tensor, times: Tensor, told: dict[str, Any]) -> Tensor:
        return self.call(x.transpose(1, 2), times, **told).transpose(1, 2)


class TwoStages(nn.Module):
    """One network for the times from ``boundary`` on, another below (Wan 2.2): a call to each that is concerned."""

    def __init__(self, high: Flow3D, low: Flow3D, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary
        self.condition_kinds = high.condition_kinds

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        if time.ndim != 1:
            raise Incompatible(f"two networks for two ranges of times are told one per sample, got {tuple(time.shape)}")
        above = time >= self.boundary
        if bool(above.all()):
            return self.high(x, time, cond)
        if not bool(above.any()):
            return self.low(x, time, cond)
        out = torch.empty_like(x)
        for rows, net in ((above, self.high), (~above, self.low)):
            out[rows] = net(x[rows], time[rows], cond.rows(rows))
        return out


class Wan(Clips):
    """``WanPipeline``."""

    networks = ("WanTransformer3DModel",)
    reference = ("prompt",)
    padded = 512
    scale = 5.0

    def check(self) -> None:
        super().check()
        if self.pipe.transformer_2 is not None:
            refuse_pictures(self.pipe.transformer_2, self.net.config.in_channels)

    def make_codec(self) -> Codec | None:
        return None if self.pipe.vae is None else WanVAE(self.pipe.vae)

    def make_backbone(self) -> nn.Module:
        null = None if self.pipe.text_encoder is None else self.words([""])["prompt"].value[0]
        steps = float(self.pipe.scheduler.config.num_train_timesteps)
        told = {"time_scale": steps, "per_token": bool(self.pipe.config.expand_timesteps)}
        first = Flow3D(self.net, null, **told)
        if self.pipe.config.boundary_ratio is None:
            return first
        if self.pipe.transformer_2 is None:
            raise Incompatible("the pipeline has a boundary between two networks, and was loaded without the second")
        second = Flow3D(self.pipe.transformer_2.eval(), null, **told)
        return TwoStages(first, second, self.pipe.config.boundary_ratio)

    @torch.no_grad()
    def words(self, entries: Sequence[Any]) -> Conditions:
        return prompts(self, entries)

    @property
    def multiple(self) -> int:
        return self.factor * self.net.config.patch_size[1]

    def tokens(self) -> int:
        frames, rows, columns = self.net.config.patch_size
        return (self.shape[0] // frames) * (self.shape[-2] // rows) * (self.shape[-1] // columns)

    def trained_size(self) -> tuple[int, int]:
        return 480, 832  # unless told; the network says none

    def trained_frames(self) -> int:
        return 81
