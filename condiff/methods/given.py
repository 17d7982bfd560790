"""Conditions that whoever samples gives: values, tables of them, or pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data import Data, Place, arrays, images
from condiff.errors import BadFile, BadValue, unknown

PICTURE_OPTIONS = ("filter", "background", "skip_bad")


@dataclass(frozen=True)
class Given:
    """``cond``: name -> one row for all samples, or a row each.

    ``names`` of the pictures that were given, in order; ``places`` where samples made from given scans belong.
    """

    cond: Mapping[str, Tensor]
    names: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()

    @property
    def rows(self) -> int | None:
        """How many rows were given; None when only single values were."""
        return max((len(v) for v in self.cond.values() if len(v) > 1), default=len(self.names) or None)

    def beside(self, other: Given) -> Given:
        """What both give.

        Raises:
            BadValue: as many rows as the other is wanted, or one.
        """
        if None not in (self.rows, other.rows) and self.rows != other.rows:
            raise BadValue(f"as many rows of everything that is given, or one, are wanted: {self.rows}, {other.rows}")
        return Given({**self.cond, **other.cond}, self.names or other.names, self.places or other.places)

    def take(self, num: int) -> dict[str, Tensor]:
        """The conditions of ``num`` samples, in turn."""
        return {name: value[torch.arange(num) % len(value)] for name, value in self.cond.items()}


def read(words: Sequence[str], data: Data, options: Mapping[str, Any]) -> Given:
    """What the words give for a run's conditions.

    Args:
        words: ``NAME=VALUE`` with a number or a list, ``NAME=PATH`` or, where one condition alone can be meant,
            ``PATH``: a picture, a folder of pictures, a ``.npy`` array, or a ``.npz`` archive with conditions by name.
        data: the run's data, whose conditions these must be like.
        options: how its pictures were read.

    Raises:
        BadValue: an unknown condition (with the nearest), another shape, lengths that differ.
        BadFile: a file that isn't there or can't be read.
    """
    cond: dict[str, Tensor] = {}
    names: tuple[str, ...] = ()
    example = data.example()
    for word in words:
        name, text = _named(word, example)
        if Path(text).suffix == ".npz":
            cond |= _table(Path(text), [name] if name else list(example), data, options)
            continue
        name = name or _only(word, example, data)
        value, seen = _value(text, data, options)
        cond[name], names = fit(name, value, example[name]), seen or names
    lengths = {n: len(v) for n, v in cond.items() if len(v) > 1}
    if len(set(lengths.values())) > 1:
        raise BadValue(f"conditions with as many rows as each other, or one, are wanted; got {lengths}")
    return Given(cond, names)


def _table(path: Path, wanted: Sequence[str], data: Data, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """The conditions that an archive holds under their names; pictures are read as those of the run."""
    stored, example = _load(path), data.example()
    found = {n: stored[n] for n in wanted if n in stored.files and stored[n].dtype.kind in "buif"}
    if not found:
        raise BadValue(f"{path} holds {stored.files}, and the run's conditions are {list(example)}")
    out = {n: torch.from_numpy(v) for n, v in found.items()}
    for name, value in out.items():
        if data.kinds.get(name) in ("map", "endpoint"):
            how = None if value.dtype == torch.uint8 else "keep"
            read_as = arrays(path, name, channels=options.get("channels", "first"), range=how)
            out[name] = read_as.batch(range(len(read_as)))["x"]
    return {n: fit(n, v, example[n]) for n, v in out.items()}


def _named(word: str, example: Mapping[str, Tensor]) -> tuple[str | None, str]:
    name, equals, text = word.partition("=")
    if not equals or Path(word).exists():
        return None, word
    if name == "label":
        raise BadValue("classes are given with --label")
    if name not in example:
        raise unknown("condition", name, example)
    return name, text


def _only(word: str, example: Mapping[str, Tensor], data: Data) -> str:
    pictures = [n for n in example if data.kinds.get(n) in ("map", "endpoint")]
    names = pictures if len(pictures) == 1 else [n for n in example if n != "label"]
    if not names:
        raise BadValue("the run has no conditions but its classes: leave --condition out")
    if len(names) != 1:
        raise BadValue(f"{word!r} could be any of the run's conditions {names}: write NAME={word}")
    return names[0]


def _value(text: str, data: Data, options: Mapping[str, Any]) -> tuple[Tensor, tuple[str, ...]]:
    """The value of a word with its rows first, and the names of pictures."""
    path = Path(text)
    if path.suffix == ".npy":
        return torch.from_numpy(_load(path)), ()
    if path.exists():
        how = {k: options[k] for k in PICTURE_OPTIONS if k in options}
        crop = options.get("crop", "center")
        pictures = images(
            path,
            (data.shape[1], data.shape[2]),
            labels=None,
            channels=data.shape[0],
            crop="center" if crop == "random" else crop,
            **how,
        )
        return pictures.batch(range(len(pictures)))["x"], tuple(Path(i.name).stem for i in pictures.views["x"])
    try:
        value = torch.tensor(json.loads(text), dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadValue(f"{text!r} is neither a number, a list of them, nor a file that exists") from error
    return value[None], ()


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BadFile(f"no such file: {path}") from error
    except Exception as error:  # zipfile, zlib, EOF and ValueError, depending on where the damage is
        if "pickle" in str(error):  # numpy says so of whatever it doesn't know
            raise BadFile(f"{path} is no .npy or .npz file, or holds pickled objects, which are refused") from error
        raise BadFile(f"{path} can't be read as a NumPy file without pickle: {error}") from error


def fit(name: str, value: Tensor, example: Tensor) -> Tensor:
    """The rows of a condition, like an example of it.

    Raises:
        BadValue: another shape, no rows, NaN or infinity.
    """
    if value.shape[1:] != example.shape[1:] or len(value) == 0:
        raise BadValue(
            f"condition {name!r} has rows of shape {tuple(example.shape[1:])}, got {tuple(value.shape[1:])} "
            f"({len(value)} rows)"
        )
    if not torch.isfinite(value).all():
        raise BadValue(f"condition {name!r} holds NaN or infinity")
    return value.to(example.dtype)
