"""The families of pipelines that ``wrap`` knows; the first that takes a pipeline reads it."""

from condiff.interop.backbones.base import Backbone, Family
from condiff.interop.backbones.classes import Classes, DiT
from condiff.interop.backbones.flux import Flux, PackedFlow
from condiff.interop.backbones.pixels import Pixels, Plain2D
from condiff.interop.backbones.stable_diffusion import StableDiffusion, TextTokens
from condiff.interop.backbones.stable_diffusion_3 import StableDiffusion3, TextAndPooled
from condiff.interop.backbones.stable_diffusion_xl import StableDiffusionXL, TextAndSize

FAMILIES: tuple[type[Family], ...] = (
    Pixels,
    StableDiffusionXL,
    StableDiffusion,
    DiT,
    StableDiffusion3,
    Flux,
)

__all__ = [
    "FAMILIES",
    "Backbone",
    "Classes",
    "DiT",
    "Family",
    "Flux",
    "PackedFlow",
    "Pixels",
    "Plain2D",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "TextAndPooled",
    "TextAndSize",
    "TextTokens",
]
