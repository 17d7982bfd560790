"""A diffusers autoencoder as a codec: images in [-1, 1] to scaled latents and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.errors import BadValue
from condiff.random import Source, as_source


class VAE(Codec):
    """``z = (mean - shift_factor) scaling_factor``, with both numbers from the autoencoder's configuration; where that
    has ``latents_mean`` and ``latents_std``, ``z = (mean - latents_mean) scaling_factor / latents_std``, by channels.

    Args:
        vae: ``AutoencoderKL`` and its kin; not copied, put into evaluation mode. It computes in its own dtype, but in
            float32 where it is kept in float16 and its configuration says ``force_upcast``; and where it is offloaded,
            on the device that it is brought to.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        super().__init__(None if mean is None or std is None else config.latent_channels)
        self.vae = vae.eval()
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.scale.fill_(1.0 / config.scaling_factor)
        self.shift.fill_(config.get("shift_factor") or 0.0)
        if self.shift.ndim:
            self.scale.mul_(torch.tensor(std))
            self.shift.copy_(torch.tensor(mean))

    @property
    def space(self) -> str:
        """What its latents are, in words: they mix with those of the same class and scale only."""
        scale, shift = (
            ", ".join(f"{v:g}" for v in part.reshape(-1).tolist()) for part in (1.0 / self.scale, self.shift)
        )
        name = f"latents of {type(self.vae).__name__} scaled by {scale}"
        return f"{name}, shifted by {shift}" if bool((self.shift != 0.0).any()) else name

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        channels, factor = self.vae.config.in_channels, self.factor
        if len(shape) != 3 or shape[0] != channels or any(n % factor for n in shape[1:]):
            wanted = f"({channels}, H, W) with sides that are multiples of {factor}"
            raise BadValue(f"images of shape {wanted} are wanted, got {tuple(shape)}")
        return self.vae.config.latent_channels, shape[1] // factor, shape[2] // factor

    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        return self.posterior(x)[0].to(x)

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        with precise(self.vae) as vae:
            return vae.decode(placed(vae, raw), return_dict=False)[0].to(raw)

    def draw(self, x: Tensor, rng: int | torch.Generator | Source) -> Tensor:
        """A draw from the posterior of the latent instead of its mean: (B, 3, H, W) -> (B, C, h, w)."""
        self.latent_shape(x.shape[1:])
        mean, std = self.posterior(x)
        noise = as_source(rng).normal(mean.shape, mean.dtype, mean.device)
        raw = (mean + std * noise).to(x)
        shift, scale = self._statistics(raw)
        return (raw - shift) / scale

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent before it is scaled."""
        with precise(self.vae) as vae:
            said = vae.encode(placed(vae, x)).latent_dist
            return said.mean, said.std


class TinyVAE(VAE):
    """``AutoencoderTiny``, which gives latents without a spread, as networks are told them."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with precise(self.vae) as vae:
            mean = vae.encode(placed(vae, x)).latents
        return mean, torch.zeros_like(mean)


def vae_codec(vae: Any) -> VAE:
    """The codec of an autoencoder of pictures."""
    return (TinyVAE if type(vae).__name__ == "AutoencoderTiny" else VAE)(vae)


def placed(vae: Any, x: Tensor) -> Tensor:
    """x as an autoencoder takes it; the hooks of an offloaded one move its weights, not its input."""
    hook = getattr(vae, "_hf_hook", None)
    return x.to(getattr(hook, "execution_device", None) or x.device, vae.dtype)


@contextmanager
def precise(vae: Any) -> Iterator[Any]:
    """The autoencoder, in float32 for the time being where it is kept in float16 and overflows there, as its
    configuration says (``force_upcast``). One whose weights are elsewhere until a call stays as it is.
    """
    first = next(vae.parameters())
    asks = first.dtype == torch.float16 and vae.config.get("force_upcast", False) and first.device.type != "meta"
    try:
        yield vae.to(torch.float32) if asks else vae
    finally:
        if asks:
            vae.to(torch.float16)
