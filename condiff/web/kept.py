"""Settings of samples that were downloaded, read back for the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from condiff.errors import BadFile, BadValue, require_extra
from condiff.web.files import CHUNK
from condiff.web.results import FORMAT

SAME = ("solver", "steps", "guidance", "prefix", "suffix", "temperature", "top_k", "top_p", "seed", "num")


def read_kept(path: Path) -> dict[str, Any]:
    """``{"settings": ..., "facts": ...}`` of a file that a page offered: JSON, a PNG or arrays.

    Raises:
        BadFile: no such file, or one without settings.
    """
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    try:
        data = json.loads(_text(path))
    except (OSError, ValueError, KeyError) as error:
        raise BadFile(f"{path} holds no settings: it wasn't downloaded from a page, or was saved again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("settings"), dict):
        raise BadFile(f"{path} holds no settings of samples")
    return data


def _text(path: Path) -> str:
    if path.suffix == ".png":
        with require_extra("PIL.Image", "web").open(path) as picture:
            return picture.text[CHUNK]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays["settings"])
    return path.read_text()


def options_of(kept: dict[str, Any], given: tuple[str, ...]) -> dict[str, Any]:
    """The options of ``condiff sample`` that make the same samples of the same run.

    Args:
        given: conditions that are given anew, NAME=VALUE: pictures have to be.

    Raises:
        BadValue: samples of a pipeline; a picture that isn't given.
    """
    settings, facts = kept["settings"], kept.get("facts") or {}
    if "pipeline" in facts:
        raise BadValue(f"these samples are those of the pipeline {facts['pipeline']}: load the settings into its page")
    out = {name: settings[name] for name in SAME if name in settings}
    out["label"] = tuple(settings.get("labels", ()))
    out["condition"] = (given, *_conditions(settings.get("conditions", {}), given))
    return out | ({"weights": facts["weights"]} if "weights" in facts else {})


def _conditions(conditions: dict[str, Any], given: tuple[str, ...]) -> list[tuple[str, ...]]:
    anew = {word.partition("=")[0] for word in given if "=" in word}
    kept = {name: value for name, value in conditions.items() if name not in anew}
    pictures = [name for name, value in kept.items() if isinstance(value, dict)]
    if pictures:
        raise BadValue(f"the picture {pictures[0]!r} isn't kept with the settings: --condition {pictures[0]}=FILE")
    return [(f"{name}={json.dumps(value)}",) for name, value in kept.items()]
