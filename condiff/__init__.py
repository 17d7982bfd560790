"""condiff: conditional diffusion and flow models as few exact parts.

Everything below is imported on first use: ``import condiff`` itself loads neither torch nor numpy.

>>> import condiff as cd
>>> cd.process.Gaussian(cd.process.Rectified())  # doctest: +ELLIPSIS
Gaussian(schedule=Rectified(shift=1.0), ...)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
    "codecs",
    "conditions",
    "config",
    "data",
    "denoiser",
    "distill",
    "errors",
    "figures",
    "guidance",
    "interop",
    "methods",
    "metrics",
    "multimodal",
    "networks",
    "process",
    "random",
    "sampling",
    "scoring",
    "training",
    "video",
)

# The names that most sessions need, without their room.
_NAMES = {
    "Aligned": "aligned",
    "Condition": "conditions",
    "Conditions": "conditions",
    "Denoiser": "denoiser",
    "EDMPrecondition": "denoiser",
    "TokenDenoiser": "token_denoiser",
    "sample": "sampling",
    "trajectory": "sampling",
    "invert": "sampling",
    "log_likelihood": "sampling",
    "Hook": "sampling",
    "DDIM": "sampling",
    "DDPM": "sampling",
    "DPMSolverPP": "sampling",
    "DPMSolverV3": "sampling",
    "Euler": "sampling",
    "Heun": "sampling",
    "SDE": "sampling",
    "UniPC": "sampling",
    "Denoising": "training",
    "Trainer": "training",
    "TrainConfig": "training",
    "train": "training",
}

__all__ = ["__version__", "load", "oracles", *_ROOMS, *_NAMES]  # pyright: ignore[reportUnsupportedDunderAll]: imported on first use


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"condiff.{name}")
    if name == "oracles":
        return importlib.import_module("condiff.process.oracles")
    if name == "load":
        return importlib.import_module("condiff.model_files").load_model
    if name in _NAMES:
        return getattr(importlib.import_module(f"condiff.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'condiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
