"""Configurations: frozen dataclasses to JSON and back.

A part is written as ``{"part": "process.Gaussian", "schedule": {"part": "process.Cosine", "shift": 1.0}, ...}``:
the public name under which it is found (``condiff.process.Gaussian``) and its fields. Only dataclasses that
condiff itself publishes can be named, so that a file can't call anything else.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import textwrap
from typing import Any

import torch

from condiff.errors import BadFile, BadType, BadValue, unknown

MANY = 24  # numbers of a list that are shown one by one
ROOMS = (
    "process",
    "networks",
    "codecs",
    "conditions",
    "denoiser",
    "sampling",
    "guidance",
    "multimodal",
    "training",
    "distill",
    "scoring",
    "data",
    "methods",
)


def public_name(cls: type) -> str:
    """``room.Name`` of a published dataclass.

    Raises:
        BadType: when no room publishes it.
    """
    room = cls.__module__.split(".")[1] if cls.__module__.startswith("condiff.") else ""
    if room in ROOMS and getattr(importlib.import_module(f"condiff.{room}"), cls.__name__, None) is cls:
        return f"{room}.{cls.__name__}"
    raise BadType(f"{cls.__module__}.{cls.__name__} can't be stored in a configuration: condiff doesn't publish it")


def to_config(value: Any) -> Any:
    """A part, or a tree of parts, as JSON-ready data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_config(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"part": public_name(type(value)), **fields}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        if {"part", "tensor", "float"} & set(value):
            raise BadType("a dictionary with a key 'part', 'tensor' or 'float' can't be stored: they mark parts")
        return {str(k): to_config(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_config(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no word for infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadType(f"can't store a {type(value).__name__} in a configuration: {value!r}")


def from_config(data: Any) -> Any:
    """The inverse of :func:`to_config`. Lists become tuples.

    Raises:
        BadValue: an unknown part or field (with the nearest names), or fields that the part refuses.
    """
    if isinstance(data, list):
        return tuple(from_config(v) for v in data)
    if not isinstance(data, dict):
        return data
    if "tensor" in data:
        return torch.tensor(data["tensor"], dtype=getattr(torch, data["dtype"]))
    if "float" in data:
        return float(data["float"])
    if "part" not in data:
        return {k: from_config(v) for k, v in data.items()}
    cls = find_part(data["part"])
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in data:
        if key != "part" and key not in names:
            raise unknown(f"field of {data['part']}", key, names)
    try:
        return cls(**{k: from_config(v) for k, v in data.items() if k != "part"})
    except TypeError as error:
        raise BadValue(f"{data['part']} can't be built from what was given: {error}") from error


def find_part(name: str) -> type:
    """The dataclass with a public name."""
    room, _, cls_name = str(name).partition(".")
    if room not in ROOMS:
        raise unknown("room of a part", name, ROOMS)
    module = importlib.import_module(f"condiff.{room}")
    cls = getattr(module, cls_name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        known = [n for n in dir(module) if dataclasses.is_dataclass(getattr(module, n, None))]
        raise unknown(f"part of {room}", cls_name, known)
    return cls


def read_json(path: Any) -> Any:
    """A JSON file.

    Raises:
        BadFile: when it is missing or isn't JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadFile(f"no such file: {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadFile(f"{path} is not valid JSON: {error}") from error


def tree(value: dict[str, Any], indent: int = 0, width: int = 100) -> str:
    """Nested configuration as indented lines; a part stands on one line where it fits, ``solver: DDIM(eta=0.0)``."""
    lines = []
    for key, item in value.items():
        if key == "part":
            continue
        pad = "  " * indent
        line = f"{pad}{key}: {_one_line(item)}"
        if isinstance(item, dict) and len(line) > width and not _nested(item):
            lines += textwrap.wrap(line, width, subsequent_indent=pad + "    ", break_long_words=False)
        elif isinstance(item, dict) and item and len(line) > width:
            lines.append(f"{pad}{key}: {_name(item)}".rstrip())
            lines.append(tree({k: v for k, v in item.items() if k != "part"}, indent + 1, width))
        elif isinstance(item, list) and len(line) > width and any(isinstance(v, dict) for v in item):
            lines.append(f"{pad}{key}:")
            lines.append(tree({str(i): v for i, v in enumerate(item)}, indent + 1, width))
        else:
            lines.append(line)
    return "\n".join(lines)


def _nested(item: dict[str, Any]) -> bool:
    return any(isinstance(v, dict) for v in item.values())


def _name(item: dict[str, Any]) -> str:
    return str(item.get("part", "")).rpartition(".")[2]


def _one_line(item: Any) -> str:
    if isinstance(item, list):
        if len(item) > MANY and all(isinstance(v, int | float) for v in item):  # a table: its ends tell enough
            first, last = (", ".join(f"{v:.6g}" for v in part) for part in (item[:3], item[-2:]))
            return f"[{first}, ... {len(item)} numbers ..., {last}]"
        return f"[{', '.join(map(_one_line, item))}]"
    if not isinstance(item, dict):
        return str(item)
    if "float" in item:
        return str(item["float"])
    inside = ", ".join(f"{k}={_one_line(v)}" for k, v in item.items() if k != "part")
    return f"{_name(item)}({inside})" if "part" in item else f"{{{inside}}}"
