"""Interop: pretrained diffusers pipelines as condiff denoisers.

``wrap(pipe)`` reads a loaded pipeline: what its network predicts, on which process, what it is told. All of condiff's
solvers, guidance and tools then run on it.
"""

from condiff.interop.attention import control_attention, edit_in
from condiff.interop.backbones import (
    Classes,
    Family,
    Plain2D,
    TextAndPooled,
    TextTokens,
    control_interval,
    dynamic_scale,
)
from condiff.interop.export import as_guider, as_scheduler
from condiff.interop.frames import encode_frames, load_vae
from condiff.interop.loading import load_pipeline
from condiff.interop.lora import add_lora, save_lora
from condiff.interop.pipelines import Wrapped, wrap
from condiff.interop.prompts import attention_edit, prompt_tokens
from condiff.interop.schedulers import ContinuousV, Whole, WholeIndex, grid_of, precondition_of, process_of

__all__ = [
    "Classes",
    "ContinuousV",
    "Family",
    "Plain2D",
    "TextAndPooled",
    "TextTokens",
    "Whole",
    "WholeIndex",
    "Wrapped",
    "add_lora",
    "as_guider",
    "as_scheduler",
    "attention_edit",
    "control_attention",
    "control_interval",
    "dynamic_scale",
    "edit_in",
    "encode_frames",
    "grid_of",
    "load_pipeline",
    "load_vae",
    "precondition_of",
    "process_of",
    "prompt_tokens",
    "save_lora",
    "wrap",
]
