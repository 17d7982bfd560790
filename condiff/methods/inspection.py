"""What a place holds: a run, a checkpoint, a pipeline, an adapter, a weights file; and what is installed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from condiff.config import read_json
from condiff.errors import BadFile
from condiff.interop.checkpoints import PICKLES, WHY, describe_folder, describe_header
from condiff.interop.repository import HubRepository, LocalFolder, is_name, read_header
from condiff.model_files import versions


def describe(place: str | Path) -> dict[str, Any]:
    """Facts about a run, a checkpoint, a diffusers pipeline or a part of one, an adapter, a .safetensors file; of a
    folder here, or of a repository on the Hub, "owner/name" or "owner/name@revision".

    Raises:
        BadFile: nothing there, a pickle, or something else.
    """
    path = Path(place)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        return {"file": str(path), **describe_header(read_header(path))}
    if path.suffix in PICKLES:
        raise BadFile(f"{path} is refused: {WHY}")
    name, _, revision = str(place).partition("@")
    if not path.exists() and is_name(name) and not name.startswith("."):
        return _repository(HubRepository(name, revision or None))
    if not path.exists():
        raise BadFile(f"no such file or folder: {path}")
    raise BadFile(f"{path} is neither a run folder nor a .safetensors file")


def _repository(place: HubRepository) -> dict[str, Any]:
    config = place.json("config.json") if "config.json" in place.files() else {}
    known = isinstance(config, dict) and "format" in config
    return {"run": str(place), **_known(config)} if known else describe_folder(place)


def _folder(path: Path) -> dict[str, Any]:
    if (path / "state.json").is_file():
        state = read_json(path / "state.json")
        return {"checkpoint": str(path), "step": state.get("step"), "files": _sizes(path)}
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if not isinstance(config, dict) or "format" not in config:
        return describe_folder(LocalFolder(path))
    steps = sorted(int(p.name.removeprefix("step-")) for p in (path / "checkpoints").glob("step-*"))
    facts: dict[str, Any] = {"run": str(path), "finished": (path / "model.safetensors").is_file(), "checkpoints": steps}
    if facts["finished"]:
        facts["parameters"] = read_header(path / "model.safetensors").parameters
    if (path / "metrics.json").is_file():
        found = read_json(path / "metrics.json").items()
        facts["metrics"] = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found}
    return {**facts, **_known(config)}


def _known(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json of a run, a model or a codec says; a run's recipe says what its denoiser is."""
    first = "recipe" if "recipe" in config else "denoiser"
    return {k: config[k] for k in (first, "codec", "data", "versions") if k in config}


def _sizes(path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(path.iterdir())}


def environment() -> dict[str, Any]:
    """Versions, devices and which extras are installed."""
    from importlib.util import find_spec

    extras = {
        "cli": ("tyro", "yaml", "rich"),
        "train": ("tensorboard", "matplotlib", "PIL", "sklearn"),
        "metrics": ("torchmetrics", "scipy"),
        "ode": ("torchdiffeq",),
        "data": ("PIL", "pyarrow"),
        "volumes": ("nibabel",),
        "text": ("tokenizers",),
        "hf": ("datasets", "huggingface_hub", "diffusers"),
        "series": ("pandas", "gluonts", "statsmodels"),
        "video": ("av",),
        "adapters": ("peft",),
        "web": ("fastapi", "uvicorn", "websockets"),
    }
    missing = {name: [m for m in modules if find_spec(m) is None] for name, modules in extras.items()}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **versions(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "extras": {
            name: "installed" if not lacks else f"missing {', '.join(lacks)}" for name, lacks in missing.items()
        },
    }
