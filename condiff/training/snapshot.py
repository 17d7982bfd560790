"""The engine as files and back: what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condiff.model_files import RAW, check_tensors, describe_weights
from condiff.training.checkpoint import pack_optimizer, read_file, unpack_optimizer
from condiff.training.engine import Engine
from condiff.training.parallel import fill, wholes

Files = dict[str, tuple[dict[str, Tensor], dict[str, str]]]


def weights_of(engine: Engine, step: int) -> Files:
    """The raw and the averaged weights, whole: name -> (tensors, metadata). All processes must ask together."""
    files = {"model": (wholes(engine.denoiser.state_dict()), describe_weights(engine.denoiser, "raw", step=step))}
    if engine.ema is not None:
        for name in engine.ema.averages:
            about = describe_weights(engine.denoiser, f"ema-{name}", default=name == engine.ema.default, step=step)
            files[f"ema-{name}"] = (wholes(engine.ema.tensors(name)), about)
    return files


def pack(engine: Engine, step: int) -> tuple[Files, dict[str, Any]]:
    """``(files, state)`` of a checkpoint. All processes must ask together."""
    files = weights_of(engine, step)
    if isinstance(engine.objective, nn.Module):
        files["objective"] = (wholes(engine.objective.state_dict()), {})
    tensors, record = pack_optimizer(engine.optimizer, engine.names)
    files["optimizer"] = (tensors, {})
    return files, {"optimizer": record, "scaler": engine.scaler.state_dict()}


def restore(engine: Engine, path: Path, state: dict[str, Any]) -> None:
    """Put a checkpoint back.

    Raises:
        Incompatible: of another model.
    """
    _fill_all(engine.denoiser.state_dict(), read_file(path, "model"), path / RAW)
    if engine.ema is not None:
        for name in engine.ema.averages:
            own = dict(zip(engine.ema.names, engine.ema.values[name], strict=True))
            stored = read_file(path, f"ema-{name}")
            _fill_all(own, {k: v for k, v in stored.items() if k in own}, path / f"ema-{name}.safetensors")
    if isinstance(engine.objective, nn.Module):
        _fill_all(engine.objective.state_dict(), read_file(path, "objective"), path / "objective.safetensors")
    unpack_optimizer(engine.optimizer, engine.names, read_file(path, "optimizer"), state["optimizer"])
    if state["scaler"]:
        engine.scaler.load_state_dict(state["scaler"])


def _fill_all(own: dict[str, Tensor], stored: dict[str, Tensor], path: Path) -> None:
    check_tensors(own, stored, str(path))
    for name, tensor in own.items():
        fill(tensor, stored[name])
