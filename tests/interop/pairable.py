"""The tiny pipelines whose rows can be paired, and how they are told something."""

import tiny
import torch

from condiff.conditions import Condition
from condiff.interop import wrap

TOLD = ["a fox", "a red fox"]
PIPELINES = {
    "stable_diffusion": (tiny.stable_diffusion, TOLD),
    "stable_diffusion_xl": (tiny.stable_diffusion_xl, TOLD),
    "dit": (tiny.dit, [1, 2]),
    "sd3": (lambda: tiny.sd3(layers=2), TOLD),
    "sd35": (lambda: tiny.sd3(layers=2, dual_attention_layers=(0,), qk_norm="rms_norm"), TOLD),
    "flux_dev": (tiny.flux, TOLD),
    "flux_schnell": (lambda: tiny.flux(guidance=False, dynamic=False), TOLD),
}


def read(name):
    """A wrapped pipeline, with short prompts where they are padded, and two entries that it is told."""
    make, told = PIPELINES[name]
    options = {"length": 12, "size": (32, 32)} if name.startswith("flux") else {}
    return wrap(make(), **options), told


def told_of(model, entries):
    """Conditions, with a scale for networks that are told one."""
    cond = model.encode(entries)
    scales = [name for name, kind in model.denoiser.kinds.items() if kind == "scalar"]
    return cond.replace(**{n: Condition(torch.linspace(2.0, 4.0, len(entries)), "scalar") for n in scales})


def stir(module):
    """New weights that say something."""
    rng = torch.Generator().manual_seed(1)
    for name, p in module.named_parameters():
        if "lora_B" in name or "post" in name:
            torch.nn.init.normal_(p, std=0.3, generator=rng)
