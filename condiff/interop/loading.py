"""Pipelines from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from condiff.errors import BadFile, CondiffError, require_extra, unknown
from condiff.interop.repository import is_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


UNREACHED = ("ConnectError", "ConnectTimeout", "LocalEntryNotFoundError", "OfflineModeIsEnabled")


def load_pipeline(name: str, dtype: str | None = None) -> Any:
    """A pipeline from a folder or the Hub; weights are safetensors, code of a repository is never run.

    Args:
        dtype: of the weights, float32 by default; its name.

    Raises:
        BadFile: it isn't there, can't be downloaded, or isn't a pipeline.
        BadValue: an unknown dtype.
    """
    check_dtype(dtype)
    diffusers = require_extra("diffusers", "hf")
    how = {} if dtype is None else {"torch_dtype": DTYPES[dtype]}
    try:
        return diffusers.DiffusionPipeline.from_pretrained(name, use_safetensors=True, **how)
    except CondiffError:
        raise
    except Exception as error:  # OSError, ValueError, and the Hub's own, depending on what is wrong
        if not Path(name).exists() and any(type(cause).__name__ in UNREACHED for cause in _causes(error)):
            raise BadFile(f"the Hub could not be reached for {name}, and not all of it is stored here") from error
        why = shorten(str(error), 400, placeholder=" ...")
        raise BadFile(f"{name} can't be loaded as a diffusers pipeline: {why}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
