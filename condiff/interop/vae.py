"""A diffusers autoencoder as a codec: images in [-1, 1] to scaled latents and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from condiff.errors import BadValue
from condiff.random import Source, as_source


class VAE(nn.Module):
    """``z = (encode(x) - shift) scale``, with both numbers from the autoencoder's configuration.

    Args:
        vae: ``AutoencoderKL`` and its kin; not copied, put into evaluation mode.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval()
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode(self, x: Tensor, rng: int | Source | None = None) -> Tensor:
        """The mean of the posterior, or with ``rng`` a draw from it.

        Args:
            x: images (B, 3, H, W) in [-1, 1].

        Raises:
            BadValue: a shape that isn't (B, C, H, W), or sides that the factor doesn't divide.
        """
        channels = self.vae.config.in_channels
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            wanted = f"(B, {channels}, H, W) with sides that are multiples of {self.factor}"
            raise BadValue(f"images of shape {wanted} are wanted, got {tuple(x.shape)}")
        posterior = self.vae.encode(x.to(self.vae.dtype)).latent_dist
        z = posterior.mean
        if rng is not None:
            z = z + posterior.std * as_source(rng).normal(z.shape, z.dtype, z.device)
        return ((z - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), about [-1, 1]; not clipped."""
        z = z.to(self.vae.dtype) / self.scale + self.shift
        return self.vae.decode(z, return_dict=False)[0].to(z.dtype)
