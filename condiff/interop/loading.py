"""Pipelines from a folder or the Hub."""

from __future__ import annotations

from typing import Any

from condiff.errors import BadFile, CondiffError, require_extra


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
