"""Prompt tables: a CSV file with the prompts of each class."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from condiff.errors import BadFile, BadValue

COLUMNS = ("prompt", "classname", "classidx")


@dataclass(frozen=True)
class Prompts:
    """Prompts with the class of each; several may name one class.

    Args:
        prompts: the texts.
        classes: index of each prompt's class.
        names: of the classes, by index.
    """

    prompts: tuple[str, ...]
    classes: tuple[int, ...]
    names: tuple[str, ...]


def read_prompts(path: str | Path) -> Prompts:
    """A table with the columns ``prompt``, ``classname`` and ``classidx`` (0, 1, ...), a row a prompt.

    Raises:
        BadFile: no such file, or one that isn't text.
        BadValue: a missing column, no rows, an empty or repeated prompt, indices that aren't 0 ... K - 1, or a class
            with two names.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path} is not a CSV file in UTF-8: {error}") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise BadValue(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    if not rows:
        raise BadValue(f"{path} has no prompts")
    prompts = [(row["prompt"] or "").strip() for row in rows]
    if not all(prompts) or len(set(prompts)) < len(prompts):
        twice = next((p for p in prompts if not p or prompts.count(p) > 1), "")
        raise BadValue(f"{path}: every prompt is there once, got {twice!r}")
    return Prompts(tuple(prompts), *_classes(rows, path))


def _classes(rows: list[dict[str, str]], path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names: dict[int, str] = {}
    indices = []
    for line, row in enumerate(rows, start=2):
        text, name = (row["classidx"] or "").strip(), (row["classname"] or "").strip()
        if not text.isdigit() or not name:
            raise BadValue(
                f"{path}, line {line}: a classidx 0, 1, ... and a classname are wanted, got {text!r}, {name!r}"
            )
        index = int(text)
        if names.setdefault(index, name) != name:
            raise BadValue(f"{path}, line {line}: class {index} is {names[index]!r} and {name!r}")
        indices.append(index)
    if set(names) != set(range(len(names))):
        raise BadValue(f"{path}: classidx must run from 0 to {len(names) - 1}, got {sorted(names)}")
    return tuple(indices), tuple(names[i] for i in range(len(names)))
