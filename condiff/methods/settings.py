"""Overrides of a recipe: files and ``KEY=VALUE`` settings, applied to its configuration, checked when it is rebuilt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from condiff.config import from_config, read_json, to_config
from condiff.errors import BadFile, BadValue, require_extra, unknown
from condiff.methods.names import solver


def parse(settings: Sequence[str]) -> dict[str, Any]:
    """``["network.width=128", "training.ema=[0.9,0.99]"]`` -> dotted keys and values.

    A value is JSON where it can be read as JSON (numbers, lists, true, null, objects), else text.

    Raises:
        BadValue: a setting without ``=``.
    """
    out: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise BadValue(f"a setting is KEY=VALUE, such as network.width=128; got {setting!r}")
        try:
            out[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            out[key.strip()] = text
    return out


def read_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON mapping; nested keys may also be dotted.

    Raises:
        BadFile: missing, unreadable, or not a mapping.
    """
    if path.suffix.lower() == ".json":
        data = read_json(path)
    else:
        yaml = require_extra("yaml", "cli")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BadFile(f"no such file: {path}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadFile(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadFile(f"{path} must hold a mapping of configuration keys, got {type(data).__name__}")
    return flatten(data)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a mapping that names a part replaces the part whole."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "part" not in value and value:
            out.update(flatten(value, name + "."))
        else:
            out[name] = value
    return out


def apply(part: Any, overrides: Mapping[str, Any]) -> Any:
    """The part with some fields of its tree replaced.

    Raises:
        BadValue: a key that isn't there (with the nearest ones), or a value that the part refuses.
    """
    config = to_config(part)
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = config
        for i, name in enumerate(path):
            if isinstance(node, list) and name.isdigit() and int(name) < len(node):
                node = node[int(name)]
                continue
            if not isinstance(node, dict) or name not in node:
                raise _unknown(key, node, path[:i])
            node = node[name]
        if not isinstance(node, dict) or last not in node:
            raise _unknown(key, node, path)
        node[last] = _like(node[last], value, key)
    return from_config(config)


def _like(old: Any, new: Any, key: str) -> Any:
    """The new value, if it is of the old one's sort; a solver may be given by its short name.

    Raises:
        BadValue: a word for a number, a number for a list, or anything but a part for a part.
    """
    if isinstance(old, dict) and "part" in old and new is not None:
        if isinstance(new, str) and str(old["part"]).startswith("sampling.") and key.endswith("solver"):
            return to_config(solver(new))
        if not (isinstance(new, dict) and "part" in new):
            example = json.dumps({"part": old["part"]})
            raise BadValue(f"{key} is a part: give its fields ({key}.FIELD=VALUE), or another such as {example}")
    if isinstance(old, list) and isinstance(new, int | float | str) and len(old) != 1:
        raise BadValue(f"{key} is a list such as {json.dumps(old)}, got {new!r}")
    if isinstance(old, list) and isinstance(new, int | float):
        return [new]
    number = isinstance(old, int | float) and not isinstance(old, bool)
    if number and isinstance(new, str | bool):
        raise BadValue(f"{key} is a number such as {old}, got {new!r}")
    return new


def _unknown(key: str, node: Any, path: Sequence[str]) -> BadValue:
    """The error of a key that isn't there: it names fields of that name further down, else those that are there."""
    last = key.rpartition(".")[2]
    deeper = [field for field in _fields(node) if field.endswith(f".{last}")]
    if deeper:
        named = " or ".join(repr(".".join([*path, field])) for field in deeper[:3])
        return BadValue(f"unknown setting {key!r}. Did you mean {named}?")
    return unknown("setting", key, _keys(node, path))


def _fields(node: Any, prefix: str = "") -> list[str]:
    """All fields of a tree, dotted."""
    own = {k: v for k, v in node.items() if k != "part"} if isinstance(node, dict) else {}
    return [f for k, v in own.items() for f in (prefix + k, *_fields(v, f"{prefix}{k}."))]


def _keys(node: Any, path: Sequence[str]) -> list[str]:
    names = [k for k in node if k != "part"] if isinstance(node, dict) else []
    return [".".join([*path, name]) for name in names]
