"""Interop: pretrained diffusers pipelines as condiff denoisers.

``wrap(pipe)`` reads a loaded pipeline: what its network predicts, on which process, what it is told. All of condiff's
solvers, guidance and tools then run on it.
"""

from condiff.interop.backbones import Classes, Plain2D, TextAndPooled, TextTokens
from condiff.interop.frames import encode_frames, load_vae
from condiff.interop.pipelines import Wrapped, wrap
from condiff.interop.schedulers import grid_of, process_of

__all__ = [
    "Classes",
    "Plain2D",
    "TextAndPooled",
    "TextTokens",
    "Wrapped",
    "encode_frames",
    "grid_of",
    "load_vae",
    "process_of",
    "wrap",
]
