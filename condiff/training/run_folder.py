"""A run's folder: claimed once, described in ``config.json``, and continued only by the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condiff.config import read_json, to_config
from condiff.errors import BadFile
from condiff.files import write_json
from condiff.model_files import CONFIG, FORMAT, RAW, check_same, describe, versions
from condiff.training.config import TrainConfig, fixed_fields
from condiff.training.parallel import Parallel


def describe_run(
    denoiser: Any, objective: Any, config: TrainConfig, data: Any, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json: what rebuilds the model and the run."""
    return {
        "format": FORMAT,
        **extra,
        "denoiser": describe(denoiser),
        "objective": describe(objective),
        "training": to_config(config),
        "data": _facts(data),
        "versions": versions(),
    }


def _facts(data: Any) -> dict[str, Any]:
    mark = getattr(data, "fingerprint", None)
    name = getattr(data, "name", type(data).__name__)
    return {"name": name, "length": len(data), "fingerprint": mark() if callable(mark) else mark}


def claim(folder: Path, record: dict[str, Any], resume: bool, parallel: Parallel) -> None:
    """Make the folder this run's.

    Raises:
        BadFile: a run is there already, or there is none to resume.
        Incompatible: resuming a run of another model, objective, configuration or data.
    """
    taken = [n for n in (CONFIG, "checkpoints", "metrics.jsonl", RAW) if (folder / n).exists()]
    if taken and not resume:
        raise BadFile(f"{folder} holds a run ({taken[0]}): continue it with resume=True, or name another folder")
    if resume and not folder.is_dir():
        raise BadFile(f"there is no run to resume: {folder} does not exist")
    parallel.wait()
    if parallel.main:
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / CONFIG).exists():
        _check_settings(folder, record)
    elif parallel.main:
        write_json(folder / CONFIG, record)
    parallel.wait()


def _check_settings(folder: Path, here: dict[str, Any]) -> None:
    stored = read_json(folder / CONFIG)
    for key in ("denoiser", "objective"):
        check_same(stored.get(key), here[key], f"{folder} was run with another {key}")
    content = [{k: v for k, v in r["data"].items() if k != "name"} for r in (stored, here)]  # it may have moved
    check_same(content[0], content[1], f"{folder} was run with other data")
    kept = [{k: v for k, v in r["training"].items() if k in fixed_fields()} for r in (stored, here)]
    check_same(kept[0], kept[1], f"{folder} was run with another training configuration")
