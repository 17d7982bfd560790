"""What a path is: a run, a checkpoint, a weights file; and what is installed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from condiff.config import read_json
from condiff.errors import BadFile
from condiff.files import read_metadata, read_tensors
from condiff.model_files import versions


def describe(path: Path) -> dict[str, Any]:
    """Facts about a run folder, a checkpoint folder or a .safetensors file.

    Raises:
        BadFile: nothing there, a pickle, or something else.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _weights(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        raise BadFile(f"{path} is a pickle, which can run code when it is opened: convert it to .safetensors first")
    if not path.exists():
        raise BadFile(f"no such file or folder: {path}")
    raise BadFile(f"{path} is neither a run folder nor a .safetensors file")


def _folder(path: Path) -> dict[str, Any]:
    if (path / "state.json").is_file():
        state = read_json(path / "state.json")
        return {"checkpoint": str(path), "step": state.get("step"), "files": _sizes(path)}
    if not (path / "config.json").is_file():
        raise BadFile(f"{path} is not a run: it has no config.json")
    config = read_json(path / "config.json")
    steps = sorted(int(p.name.removeprefix("step-")) for p in (path / "checkpoints").glob("step-*"))
    facts: dict[str, Any] = {"run": str(path), "finished": (path / "model.safetensors").is_file(), "checkpoints": steps}
    if (path / "metrics.json").is_file():
        facts["metrics"] = read_json(path / "metrics.json")
    return {**facts, **{k: config[k] for k in ("recipe", "denoiser", "data", "versions") if k in config}}


def _sizes(path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in sorted(path.iterdir())}


def _weights(path: Path) -> dict[str, Any]:
    tensors, metadata = read_tensors(path)[0], read_metadata(path)
    return {
        "file": str(path),
        "tensors": len(tensors),
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "metadata": metadata,
    }


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
