"""A diffusers autoencoder as a codec: images in [-1, 1] to scaled latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.errors import BadValue
from condiff.random import Source, as_source


class VAE(Codec):
    """``z = (mean - shift_factor) scaling_factor``, with both numbers from the autoencoder's configuration.

    Args:
        vae: ``AutoencoderKL`` and its kin; not copied, put into evaluation mode. It computes in its own dtype, and
            where it is offloaded, on the device that it is brought to.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval()
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale.fill_(1.0 / vae.config.scaling_factor)
        self.shift.fill_(getattr(vae.config, "shift_factor", None) or 0.0)

    @property
    def space(self) -> str:
        """What its latents are, in words: they mix with those of the same class and scale only."""
        scale, shift = 1.0 / float(self.scale), float(self.shift)
        return f"latents of {type(self.vae).__name__} scaled by {scale:g}" + (
            f", shifted by {shift:g}" if shift else ""
        )

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        channels, factor = self.vae.config.in_channels, self.factor
        if len(shape) != 3 or shape[0] != channels or any(n % factor for n in shape[1:]):
            wanted = f"({channels}, H, W) with sides that are multiples of {factor}"
            raise BadValue(f"images of shape {wanted} are wanted, got {tuple(shape)}")
        return self.vae.config.latent_channels, shape[1] // factor, shape[2] // factor

    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        return self.posterior(x)[0].to(x)

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        return self.vae.decode(placed(self.vae, raw), return_dict=False)[0].to(raw)

    def draw(self, x: Tensor, rng: int | torch.Generator | Source) -> Tensor:
        """A draw from the posterior of the latent instead of its mean: (B, 3, H, W) -> (B, C, h, w)."""
        self.latent_shape(x.shape[1:])
        mean, std = self.posterior(x)
        noise = as_source(rng).normal(mean.shape, mean.dtype, mean.device)
        raw = (mean + std * noise).to(x)
        return (raw - self.shift) / self.scale

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent before it is scaled."""
        said = self.vae.encode(placed(self.vae, x)).latent_dist
        return said.mean, said.std


def placed(vae: Any, x: Tensor) -> Tensor:
    """x as an autoencoder takes it; the hooks of an offloaded one move its weights, not its input."""
    hook = getattr(vae, "_hf_hook", None)
    return x.to(getattr(hook, "execution_device", None) or x.device, vae.dtype)
