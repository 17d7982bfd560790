"""diffusers' autoencoders of videos as codecs: clips (B, F, C, H, W) in [-1, 1] to scaled latents (B, f, c, h, w)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.errors import BadValue
from condiff.interop.vae import VAE, placed


class ClipVAE(Codec):
    """Base: an autoencoder of clips; the first frame is a latent of its own, then ``every`` frames share one.

    Args:
        vae: not copied, put into evaluation mode.
        factor: pixels per latent along a side.
        every: frames per latent.
        channels: of the latents.
        per_channel: whether the latents are scaled channel by channel.
    """

    channel_axis = 2

    def __init__(self, vae: Any, factor: int, every: int, channels: int, per_channel: bool = False) -> None:
        super().__init__(channels if per_channel else None)
        self.vae = vae.eval()
        self.factor, self.every, self.channels = factor, every, channels

    @property
    @abstractmethod
    def space(self) -> str:
        """What its latents are, in words."""

    def frames(self, count: int) -> int:
        """How many latents a clip of so many frames has.

        Raises:
            BadValue: no multiple of ``every`` and one.
        """
        if count < 1 or (count - 1) % self.every:
            raise BadValue(f"clips of 1 + a multiple of {self.every} frames are wanted, got {count}")
        return 1 + (count - 1) // self.every

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        channels, factor = self.vae.config.in_channels, self.factor
        if len(shape) != 4 or shape[1] != channels or any(n % factor for n in shape[2:]):
            wanted = f"(F, {channels}, H, W) with sides that are multiples of {factor}"
            raise BadValue(f"clips of shape {wanted} are wanted, got {tuple(shape)}")
        return self.frames(shape[0]), self.channels, shape[2] // factor, shape[3] // factor

    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        return self.vae.encode(placed(self.vae, x.transpose(1, 2))).latent_dist.mean.transpose(1, 2).to(x)

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        return self.vae.decode(placed(self.vae, raw.transpose(1, 2)), return_dict=False)[0].transpose(1, 2).to(raw)


class CogVideoXVAE(ClipVAE):
    """``AutoencoderKLCogVideoX``: ``z = mean scaling_factor``."""

    def __init__(self, vae: Any) -> None:
        config = vae.config
        super().__init__(
            vae,
            2 ** (len(config.block_out_channels) - 1),
            int(config.temporal_compression_ratio),
            config.latent_channels,
        )
        self.scale.fill_(1.0 / config.scaling_factor)

    @property
    def space(self) -> str:
        return f"latents of {type(self.vae).__name__} scaled by {1.0 / float(self.scale):g}"


class WanVAE(ClipVAE):
    """``AutoencoderKLWan``: ``z = (mean - latents_mean) / latents_std``, channel by channel."""

    def __init__(self, vae: Any) -> None:
        config = vae.config
        super().__init__(vae, config.scale_factor_spatial, config.scale_factor_temporal, config.z_dim, per_channel=True)
        self.shift.copy_(torch.tensor(config.latents_mean))
        self.scale.copy_(torch.tensor(config.latents_std))

    @property
    def space(self) -> str:
        return f"latents of {type(self.vae).__name__} in {self.channels} channels with means {self.shift.tolist()}"


class FrameVAE(VAE):
    """``AutoencoderKLTemporalDecoder``: frames are encoded one by one, and decoded knowing of each other.

    Args:
        at_once: frames that are decoded together; all of a clip when None. Fewer need less memory, and flicker.
    """

    channel_axis = 2

    def __init__(self, vae: Any, at_once: int | None = None) -> None:
        super().__init__(vae)
        if at_once is not None and at_once < 1:
            raise BadValue(f"at least one frame at once is decoded, got at_once={at_once}")
        self.at_once = at_once

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != 4:
            raise BadValue(f"clips of shape (F, C, H, W) are wanted, got {tuple(shape)}")
        return shape[0], *super().latent_shape(shape[1:])

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().posterior(x.flatten(0, 1))
        return mean.unflatten(0, x.shape[:2]), std.unflatten(0, x.shape[:2])

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        clips = [self._decoded(clip) for clip in raw]
        return torch.stack(clips).to(raw)

    def _decoded(self, clip: Tensor) -> Tensor:
        parts = placed(self.vae, clip).split(self.at_once or len(clip))
        return torch.cat([self.vae.decode(part, num_frames=len(part), return_dict=False)[0] for part in parts])
