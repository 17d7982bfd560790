"""The families of pipelines that ``wrap`` knows; the first that takes a pipeline reads it."""

from condiff.interop.backbones.base import Backbone, Family
from condiff.interop.backbones.classes import Classes, DiT
from condiff.interop.backbones.cogvideox import CogVideoX, Expert3D, dynamic_scale
from condiff.interop.backbones.controlnet import Controlled, ControlNets, control_interval
from condiff.interop.backbones.flux import Flux, PackedFlow
from condiff.interop.backbones.pixels import Pixels, Plain2D
from condiff.interop.backbones.stable_diffusion import StableDiffusion, TextTokens
from condiff.interop.backbones.stable_diffusion_3 import StableDiffusion3, TextAndPooled
from condiff.interop.backbones.stable_diffusion_xl import StableDiffusionXL, TextAndSize
from condiff.interop.backbones.stable_video_diffusion import PictureToClip, StableVideoDiffusion
from condiff.interop.backbones.wan import Flow3D, TwoStages, Wan

FAMILIES: tuple[type[Family], ...] = (
    ControlNets,
    Pixels,
    StableDiffusionXL,
    StableDiffusion,
    DiT,
    StableDiffusion3,
    Flux,
    StableVideoDiffusion,
    CogVideoX,
    Wan,
)

__all__ = [
    "FAMILIES",
    "Backbone",
    "Classes",
    "CogVideoX",
    "ControlNets",
    "Controlled",
    "DiT",
    "Expert3D",
    "Family",
    "Flow3D",
    "Flux",
    "PackedFlow",
    "PictureToClip",
    "Pixels",
    "Plain2D",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "StableVideoDiffusion",
    "TextAndPooled",
    "TextAndSize",
    "TextTokens",
    "TwoStages",
    "Wan",
    "control_interval",
    "dynamic_scale",
]
