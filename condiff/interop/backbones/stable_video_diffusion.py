"""Stable Video Diffusion: a picture that begins to move, by continuous noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible
from condiff.interop.backbones.base import Backbone, filled, need, refuse_pictures
from condiff.interop.backbones.clips import Clips
from condiff.interop.pictures import pictures
from condiff.interop.video_vae import FrameVAE
from condiff.random import Source, as_source


class PictureToClip(Backbone):
    """``UNetSpatioTemporalConditionModel``: conditions ``image`` (B, C, H, W), unscaled latents of the picture;
    ``seen`` (B, 1, D), what CLIP sees in it; ``motion`` (B, 3): frames per second less one, the motion bucket and the
    noise on the picture. The state is (B, F, C, H, W).

    Rows without a picture are told zeros in its place and ``motion`` all the same, as in the pipeline.
    """

    condition_kinds: ClassVar[dict[str, str]] = {"image": "map", "seen": "tokens", "motion": "vector"}

    def told(self, cond: Conditions, x: Tensor) -> dict[str, Any]:
        image, seen = need(cond, "image", "a picture"), need(cond, "seen", "what is seen in a picture")
        motion = need(cond, "motion", "how it moves (frames per second, bucket, noise)").value
        latents, tokens = (filled(e, torch.zeros_like(e.value[0]), n) for e, n in ((image, "image"), (seen, "seen")))
        if latents.shape[1:] != x.shape[2:]:
            raise BadValue(f"latents of a picture of shape {tuple(x.shape[2:])} are wanted, got {latents.shape[1:]}")
        frames = latents.to(x)[:, None].expand(-1, x.shape[1], -1, -1, -1)
        told = {"encoder_hidden_states": tokens.to(self.dtype), "added_time_ids": motion.to(self.dtype)}
        return {"beside": frames, **told}


class StableVideoDiffusion(Clips):
    """``StableVideoDiffusionPipeline``. Its guidance grows from the first frame to the last."""

    networks = ("UNetSpatioTemporalConditionModel",)
    reference = ("image", "seen")
    scale = None  # one for each frame
    every = 1  # type: ignore[assignment]

    @property
    def factor(self) -> int:
        return self.pipe.vae_scale_factor

    def check(self) -> None:
        config = self.net.config
        if config.in_channels != 2 * config.out_channels:
            refuse_pictures(self.net, config.out_channels)

    def make_codec(self) -> Codec | None:
        return None if self.pipe.vae is None else FrameVAE(self.pipe.vae)

    def make_backbone(self) -> Backbone:
        return PictureToClip(self.net)

    def guided(self, denoiser: Any, scale: Any, negative: Any, **options: Any) -> Denoises:
        if negative is not None:
            raise Incompatible("Stable Video Diffusion is told a picture, no prompt: leave negative= out")
        ramp = torch.linspace(1.0, 3.0, self.shape[0])[None] if scale is None else scale
        return super().guided(denoiser, ramp, None, **options)

    @torch.no_grad()
    def encode(
        self,
        entries: Sequence[Any] | Tensor,
        fps: float = 7.0,
        motion: float = 127.0,
        noise: float = 0.02,
        rng: int | torch.Generator | Source | None = None,
    ) -> Conditions:
        """Pictures that begin the clips.

        Args:
            entries: pictures (PIL), or a tensor (B, 3, H, W) in [-1, 1], of the size of the clips.
            fps: frames per second.
            motion: how much moves, a bucket from 1 to 255.
            noise: standard deviation of the noise that is added to the pictures.
            rng: where that comes from.

        Raises:
            BadValue: pictures of another size or range.
            Incompatible: a pipeline without its autoencoder or image encoder.
        """
        if self.codec is None or self.pipe.image_encoder is None:
            raise Incompatible("the pipeline was loaded without its autoencoder or image encoder")
        images = pictures(entries, self.size, self.device)
        shown = [(127.5 * (image + 1.0)).permute(1, 2, 0).cpu().numpy() for image in images]
        seen = self.pipe._encode_image(shown, self.device, 1, False)
        noisy = images + noise * as_source(rng).normal(images.shape, images.dtype, images.device)
        latents = self.codec.analysis(noisy[:, None])[:, 0]
        told = torch.tensor([fps - 1.0, motion, noise], dtype=torch.float32, device=images.device)
        return Conditions(
            {
                "image": Condition(latents, "map"),
                "seen": Condition(seen, "tokens"),
                "motion": Condition(told.expand(len(images), 3), "vector"),
            }
        )

    def channels(self) -> int:
        return self.net.config.out_channels

    def trained_size(self) -> tuple[int, int]:
        return 576, 1024  # unless told; the network's sample_size is another

    def trained_frames(self) -> int:
        return self.net.config.num_frames
