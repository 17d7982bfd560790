"""Pipelines from a folder or the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from condiff.errors import BadFile, CondiffError, require_extra, unknown
from condiff.interop.repository import is_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(name: str) -> Any:
    """A pipeline from a folder or the Hub; weights are safetensors, code of a repository is never run.

    Raises:
        BadFile: it isn't there, can't be downloaded, or isn't a pipeline.
    """
    diffusers = require_extra("diffusers", "hf")
    try:
        return diffusers.DiffusionPipeline.from_pretrained(name, use_safetensors=True)
    except CondiffError:
        raise
    except Exception as error:  # OSError, ValueError, and the Hub's own, depending on what is wrong
        raise BadFile(f"{name} can't be loaded as a diffusers pipeline: {str(error).strip()[:400]}") from error


def is_pipeline(target: str | Path, what: str) -> bool:
    """Whether a target is a diffusers pipeline, by its folder or its name on the Hub, and not the folder of a run.

    Args:
        what: is done with it: "is served".

    Raises:
        BadFile: no such folder, and no name.
    """
    folder = Path(target)
    if folder.exists():
        return (folder / "model_index.json").is_file()
    if not is_name(str(target)):
        raise BadFile(f"no such folder: {target}; a run, or a diffusers pipeline, {what}")
    return True


def check_dtype(name: str | None) -> None:
    """
    Raises:
        BadValue: the name of no dtype of a pipeline's weights.
    """
    if name not in (None, *DTYPES):
        raise unknown("dtype", name, DTYPES)
