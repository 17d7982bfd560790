"""Checkpoints: folders that are whole, or that are refused by name.

``checkpoints/step-000500/`` holds ``model.safetensors``, ``ema-*.safetensors``, ``optimizer.safetensors`` and
``state.json`` with the step, the settings and the sha256 of every file and of itself. No random states: the order
of the data and every draw are functions of (seed, step), so the step is all there is to remember.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadFile
from condiff.files import clear_temporaries, put_tensors, read_tensors, remove, replacing, seal, unseal
from condiff.training.parallel import fill, whole

STATE = "state.json"
FORMAT = "condiff checkpoint 1"


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie.
        keep_last: how many stay, beside the best.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """The steps of all checkpoints, valid or not, in order."""
        found = (re.fullmatch(r"step-(\d+)", p.name) for p in self.folder.glob("step-*"))
        return sorted(int(m.group(1)) for m in found if m)

    def save(self, step: int, files: Mapping[str, tuple[Mapping[str, Tensor], dict[str, str]]], state: dict) -> Path:
        """Write one, whole or not at all, and then remove the oldest.

        Args:
            files: name -> (tensors, metadata).
            state: JSON-ready; ``state["best"]`` is None or names the step to keep.

        Raises:
            BadFile: a full disk; the checkpoints that were there are untouched.
        """
        clear_temporaries(self.folder)
        path = self.path(step)
        with replacing(path) as temporary:
            temporary.mkdir()
            for name, (tensors, metadata) in files.items():
                put_tensors(temporary / f"{name}.safetensors", tensors, metadata)
            seal(temporary, STATE, {"format": FORMAT, "step": step, **state})
        best = (state.get("best") or {}).get("step")
        self._prune({*self.steps()[-self.keep_last :], step, best})
        return path

    def _prune(self, keep: set[Any]) -> None:
        for step in self.steps():
            if step not in keep:
                remove(self.path(step))

    def newest(self, warn: Any = None) -> tuple[Path, dict[str, Any]] | None:
        """The newest valid checkpoint and its state; None when there is none at all.

        Args:
            warn: called with a message for each newer one that is damaged.

        Raises:
            BadFile: when all are damaged, naming the file in the newest.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                found = self.path(step), read_state(self.path(step))
            except BadFile as error:
                problems.append(str(error))
                continue
            if warn is not None:
                for problem in problems:
                    warn(f"a damaged checkpoint is passed over: {problem}. Continuing from {found[0]}.")
            return found
        if problems:
            raise BadFile(f"no valid checkpoint in {self.folder}: {'; '.join(problems)}")
        return None


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, after checking every file's hash.

    Raises:
        BadFile: naming the file that is missing, truncated or changed.
    """
    if not path.is_dir():
        raise BadFile(f"no such checkpoint: {path}")
    state = unseal(path, STATE)
    if state.get("format") != FORMAT:
        raise BadFile(f"{path / STATE} has the format {state.get('format')!r}, this version reads {FORMAT!r}")
    return state


def read_file(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint."""
    return read_tensors(path / f"{name}.safetensors")[0]


# Optimizers as tensors and JSON


def pack_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], list]:
    """``(tensors by "parameter/entry", groups)``; all processes must ask together when it is sharded."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[parameter]}/{key}"
            if isinstance(value, Tensor):
                tensors[place] = whole(value.detach())
            elif value is not None:
                numbers[place] = value
    groups = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups]
    for group, full in zip(groups, optimizer.param_groups, strict=True):
        group["names"] = [names[p] for p in full["params"]]
    return tensors, [{"groups": groups, "numbers": numbers}]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor], record: list
) -> None:
    """The inverse of :func:`pack_optimizer`.

    Raises:
        BadFile: parameters in other groups than here.
    """
    here = [[names[p] for p in g["params"]] for g in optimizer.param_groups]
    stored = [g["names"] for g in record[0]["groups"]]
    if here != stored:
        raise BadFile("the optimizer in the checkpoint holds other parameters than the one here")
    parameters = {name: p for p, name in names.items()}
    fused = {names[p] for g in optimizer.param_groups if g.get("fused") or g.get("capturable") for p in g["params"]}
    optimizer.state.clear()
    for place, value in tensors.items():
        name, _, key = place.rpartition("/")
        on_device = key != "step" or name in fused  # other optimizers count on the CPU
        optimizer.state[parameters[name]][key] = _like(parameters[name], value) if on_device else value
    for place, number in record[0]["numbers"].items():
        name, _, key = place.rpartition("/")
        optimizer.state[parameters[name]][key] = number


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """On the parameter's device, and sharded as it is where it has its shape."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    own = torch.zeros_like(parameter, dtype=value.dtype)
    fill(own, value)
    return own
