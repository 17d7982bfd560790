"""Codecs: between samples and the space that a diffusion model works in."""

from condiff.codecs.autoencoder import Autoencoder, AutoencoderConfig
from condiff.codecs.base import Codec, Identity, IdentityConfig
from condiff.codecs.warp import pad_to_multiple, warp
from condiff.codecs.wavelet import Haar, HaarConfig

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Codec",
    "Haar",
    "HaarConfig",
    "Identity",
    "IdentityConfig",
    "pad_to_multiple",
    "warp",
]
