"""Folders of pictures: with labels from subfolders or a table, and pairs of a degraded and a clean one."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.data.base import Refused
from condiff.data.picture import Framing, as_size
from condiff.data.pictures import Item, Pictures
from condiff.errors import BadFile, BadValue, unknown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

_HIDDEN = re.compile(r"(^|/)\.")


def images(
    path: str | Path | Sequence[Path],
    size: int | tuple[int, int] | None = None,
    *,
    labels: str | Path | None = "auto",
    channels: int | None = None,
    crop: str | None = "center",
    flip: bool = False,
    filter: str = "lanczos",
    background: str | None = None,
    skip_bad: bool = False,
    check: bool = True,
    cache: int = 512,
    seed: int = 0,
) -> Pictures:
    """A folder of pictures, searched with its subfolders.

    Args:
        path: the folder, or one picture, or a list of pictures, in whose order they come.
        size: pixels of the square, or (height, width); None when all pictures have one size.
        labels: ``"folders"``: the first subfolder on the way to a picture is its class; a ``.csv`` file with columns
            ``file`` and ``label``, files relative to ``path``; None: no labels; ``"auto"``: as ``"folders"`` if all
            pictures lie in subfolders, none if none does.
        channels, crop, flip, filter, background: see :class:`condiff.data.Framing`.
        skip_bad, check, cache, seed: see :class:`condiff.data.Pictures`.

    Raises:
        BadFile: no such folder, no pictures in it, corrupt pictures (named and counted).
        BadValue: pictures beside subfolders, labels that name missing files, or lack some.
    """
    framing = _framing(size, channels, crop, flip, filter, background)
    root, files, refused = _given(path)
    if labels == "auto":
        labels = _guess(root, files)
    named: list[str] | None = None
    if labels == "folders":
        _guess(root, files, must=True)
        named = [f.relative_to(root).parts[0] for f in files]
    elif labels is not None:
        files, named, extra = _from_table(root, files, Path(labels))
        refused += extra
    classes, y = _classes(named)
    return Pictures(
        {"x": _items(root, files)},
        framing,
        cond={} if y is None else {"label": y},
        kinds={} if y is None else {"label": "label"},
        classes=classes,
        refused=refused,
        skip_bad=skip_bad,
        check=check,
        cache=cache,
        seed=seed,
        name=root.name or str(root),
    )


def pairs(
    degraded: str | Path,
    clean: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    condition: str = "degraded",
    kind: str = "map",
    channels: int | None = None,
    crop: str | None = "center",
    flip: bool = False,
    filter: str = "lanczos",
    background: str | None = None,
    skip_bad: bool = False,
    check: bool = True,
    cache: int = 512,
    seed: int = 0,
) -> Pictures:
    """Two folders whose pictures belong together by name: the clean one is the sample, the degraded one a condition.

    Pictures are matched by their path without the suffix (``rain/a/3.jpg`` and ``clear/a/3.png``), and a pair is
    scaled, cut and mirrored alike. A degraded picture of another scale (super-resolution) is first brought to the
    size of its clean partner.

    Args:
        condition: name of the condition.
        kind: ``"map"`` (seen beside the state) or ``"endpoint"`` (the other end of the process).
        channels, crop, flip, filter, background: see :class:`condiff.data.Framing`.
        skip_bad: also leaves out pictures without a partner.
        check, cache, seed: see :class:`condiff.data.Pictures`.

    Raises:
        BadFile: missing or empty folders, corrupt pictures.
        BadValue: pictures without a partner, named.
    """
    if kind not in ("map", "endpoint"):
        raise unknown("kind of a picture condition", kind, ("map", "endpoint"))
    roots, framing = (Path(degraded), Path(clean)), _framing(size, channels, crop, flip, filter, background)
    (left, bad_left), (right, bad_right) = ((_by_stem(r, _find(r)[0]), _find(r)[1]) for r in roots)
    alone = sorted(set(left) ^ set(right))
    if alone and (not skip_bad or not set(left) & set(right)):
        where = [f"{stem} (only in {roots[stem not in left]})" for stem in alone[:12]]
        raise BadValue(
            f"{len(alone)} pictures have no partner: {', '.join(where)}; skip_bad=True (--skip-bad) leaves them out"
        )
    stems = sorted(set(left) & set(right))
    return Pictures(
        {"x": _items(roots[1], [right[s] for s in stems]), condition: _items(roots[0], [left[s] for s in stems])},
        framing,
        kinds={condition: kind},
        refused=[*bad_left, *bad_right, *(Refused(s, "has no partner") for s in alone)],
        skip_bad=skip_bad,
        check=check,
        cache=cache,
        seed=seed,
        name=f"{roots[0].name} -> {roots[1].name}",
    )


def find_pictures(path: str | Path) -> list[Path]:
    """A picture, or those of a folder with its subfolders, sorted by name.

    Raises:
        BadFile: no such folder, or no pictures in it.
    """
    path = Path(path)
    return [path] if path.is_file() and path.suffix.lower() in SUFFIXES else _find(path)[0]


def _framing(size: Any, channels: Any, crop: Any, flip: bool, filter: str, background: Any) -> Framing:
    return Framing(size=as_size(size), channels=channels, crop=crop, flip=flip, filter=filter, background=background)


def _given(path: str | Path | Sequence[Path]) -> tuple[Path, list[Path], list[Refused]]:
    """The folder that pictures lie below, the pictures, and a note about what else lies there."""
    if not isinstance(path, str | Path):
        files = [Path(file).absolute() for file in path]
        if not files:
            raise BadValue("a list of pictures names at least one")
        return Path(os.path.commonpath([file.parent for file in files])), files, []
    root = Path(path)
    if root.is_file() and root.suffix.lower() in SUFFIXES:
        return root.parent, [root], []
    return root, *_find(root)


def _find(root: Path) -> tuple[list[Path], list[Refused]]:
    """The pictures below a folder, sorted by name, and a note about what else lies there."""
    if not root.is_dir():
        raise BadFile(f"{root} is a file, not a folder of pictures" if root.is_file() else f"no such folder: {root}")
    files = [f for f in root.rglob("*") if f.is_file() and not _HIDDEN.search(f.relative_to(root).as_posix())]
    found = sorted((f for f in files if f.suffix.lower() in SUFFIXES), key=lambda f: f.relative_to(root).as_posix())
    others = Counter(f.suffix or "(no suffix)" for f in files if f.suffix.lower() not in SUFFIXES)
    if not found:
        there = f"; it holds {dict(others)}" if others else "; it is empty"
        raise BadFile(f"no pictures ({', '.join(SUFFIXES)}) in {root}{there}")
    others.pop(".csv", None)
    return found, [Refused(f"{n} files *{suffix}", "not pictures") for suffix, n in sorted(others.items())]


def _items(root: Path, files: Sequence[Path]) -> list[Item]:
    return [Item(f.relative_to(root).as_posix(), functools.partial(Path.read_bytes, f)) for f in files]


def _guess(root: Path, files: Sequence[Path], must: bool = False) -> str | None:
    """``"folders"`` if all pictures lie in subfolders, None if none does."""
    loose = [f for f in files if f.parent == root]
    if loose and (must or len(loose) < len(files)):
        raise BadValue(
            f"{len(loose)} of {len(files)} pictures lie in {root} itself (such as {loose[0].name}), so subfolders "
            "don't say their class: move them, or give labels=None or a csv file"
        )
    return None if loose else "folders"


def _from_table(root: Path, files: Sequence[Path], table: Path) -> tuple[list[Path], list[str], list[Refused]]:
    """Files with their labels, in the order of the names; pictures without a row are refused."""
    if not table.is_file():
        raise BadFile(f"no such file: labels={str(table)!r} is neither 'folders', 'auto', None nor a csv file")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise BadValue(
            f"{table} needs a header with the columns file,label, got {list(rows[0]) if rows else 'no rows'}"
        )
    label = {row["file"]: (row["label"] or "").strip() for row in rows}
    if len(label) < len(rows) or not all(label.values()):
        unlabelled = sum(not v for v in label.values())
        raise BadValue(f"{table}: {len(rows) - len(label)} files are listed twice, {unlabelled} have no label")
    known = {f.relative_to(root).as_posix(): f for f in files}
    missing = sorted(set(label) - set(known))
    if missing:
        raise BadValue(f"{table} labels {len(missing)} pictures that are not in {root}, such as {missing[:5]}")
    without = [Refused(name, f"has no label in {table.name}") for name in known if name not in label]
    names = [name for name in known if name in label]
    return [known[n] for n in names], [label[n] for n in names], without


def _classes(named: Sequence[str] | None) -> tuple[tuple[str, ...], Tensor | None]:
    """Sorted class names (numbers by value) and the labels."""
    if named is None:
        return (), None
    numeric = all(n.lstrip("-").isdigit() for n in named)
    classes = sorted(set(named), key=(lambda n: (int(n), n)) if numeric else (lambda n: (0, n)))
    index = {name: i for i, name in enumerate(classes)}
    return tuple(classes), torch.tensor([index[n] for n in named])


def _by_stem(root: Path, files: Sequence[Path]) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for file in files:
        stem = file.relative_to(root).with_suffix("").as_posix()
        if stem in out:
            raise BadValue(
                f"{file.name} and {out[stem].name} in {root} have the same name: can't tell which is the partner"
            )
        out[stem] = file
    return out
