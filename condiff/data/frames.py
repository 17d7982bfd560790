"""Frames in order in folders, and triplets of them to learn interpolation from."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condiff.data.base import Refused
from condiff.data.folders import SUFFIXES
from condiff.data.picture import Framing, as_size
from condiff.data.pictures import Item, Pictures
from condiff.data.seeded import uniform
from condiff.errors import BadFile, BadType, BadValue, require_extra

VIEWS = ("before", "x", "after")


class Triplets(Pictures):
    """Three frames in order: the middle one is the sample, the others its condition ``frames`` (B, 2, C, H, W).

    Args:
        reverse: play half of the reads backwards.
    """

    def __init__(self, rows: Sequence[Sequence[Item]], framing: Framing, *, reverse: bool = False, **options: Any):
        columns = list(zip(*rows, strict=True))
        views = dict(zip(VIEWS, columns, strict=True))
        self.reverse = reverse
        super().__init__({name: views[name] for name in ("x", "before", "after")}, framing, **options)
        self.kinds = {"frames": "frames"}

    @property
    def spans(self) -> Tensor:
        rows = list(zip(*([item.name for item in self.views[view]] for view in VIEWS), strict=True))
        frames = {name: i for i, name in enumerate(sorted({n for row in rows for n in row}, key=natural))}
        clips = {name: i for i, name in enumerate(dict.fromkeys(Path(row[0]).parent for row in rows))}
        return torch.tensor([(clips[Path(row[0]).parent], frames[row[0]], frames[row[-1]]) for row in rows])

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        rows = super()._rows(index, epoch)
        both = torch.stack([rows["cond"].pop("before"), rows["cond"].pop("after")], dim=1)
        if self.reverse:
            backwards = uniform(self.seed + 1, epoch, index)[:, 0] < 0.5
            both = torch.where(backwards.reshape(-1, *(1,) * (both.ndim - 1)), both.flip(1), both)
        return {"x": rows["x"], "cond": {"frames": both, **rows["cond"]}}

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.reverse}".encode())
        super()._content(digest)


def triplets(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    clips: str | Path | None = None,
    gap: int = 1,
    reverse: bool = False,
    channels: int | None = None,
    crop: str | None = "center",
    flip: bool = False,
    filter: str = "lanczos",
    background: str | None = None,
    skip_bad: bool = False,
    check: bool = True,
    cache: int = 512,
    seed: int = 0,
) -> Triplets:
    """Triplets of frames from folders of frames: every folder below ``path`` that holds pictures is one clip.

    A clip of three pictures is one triplet (Vimeo-90K: ``sequences/00001/0001/im1.png`` to ``im3.png``); a longer one
    gives all of its (i, i + gap, i + 2 gap). Frames are ordered by the numbers in their names.

    Args:
        path: the folder; frames may lie in it or in folders below.
        clips: a text file with one clip's folder a line, relative to ``path`` or ``path/sequences``; only these are
            read. Of Vimeo-90K: ``tri_trainlist.txt``, which is also looked for in ``path``.
        gap: frames from one of a triplet to the next.
        reverse: play half of the reads backwards.
        size, channels, crop, flip, filter, background: see :class:`condiff.data.Framing`.
        skip_bad, check, cache, seed: see :class:`condiff.data.Pictures`.

    Raises:
        BadFile: no such folder or list, clips of the list that aren't there, no clip of three frames.
        BadValue: a gap below 1.
    """
    if isinstance(gap, bool) or not isinstance(gap, int):
        raise BadType(f"gap must be an integer, got {gap!r}")
    if gap < 1:
        raise BadValue(f"gap must be at least 1, got {gap}")
    root, refused = Path(path), []
    rows = []
    for clip in _clips(root, clips):
        files = frame_files(clip)
        name = clip.relative_to(root).as_posix()
        if len(files) < 2 * gap + 1:
            refused.append(Refused(name, f"{len(files)} frames, fewer than {2 * gap + 1}"))
        rows += [[_item(root, files[i + k * gap]) for k in range(3)] for i in range(len(files) - 2 * gap)]
    if not rows:
        raise BadFile(f"no folder in {root} holds {2 * gap + 1} frames: {len(refused)} hold fewer")
    framing = Framing(size=as_size(size), channels=channels, crop=crop, flip=flip, filter=filter, background=background)
    options = {"refused": refused, "skip_bad": skip_bad, "check": check, "cache": cache, "seed": seed}
    return Triplets(rows, framing, reverse=reverse, name=root.name or str(root), **options)


def _item(root: Path, file: Path) -> Item:
    return Item(file.relative_to(root).as_posix(), functools.partial(Path.read_bytes, file))


def _clips(root: Path, listed: str | Path | None) -> list[Path]:
    """The folders that hold frames: those of a list, or all."""
    if not root.is_dir():
        raise BadFile(f"no such folder: {root}")
    if listed is None:
        folders = [root, *(f for f in root.rglob("*") if f.is_dir())]
        found = [f for f in folders if not f.name.startswith(".") and frame_files(f)]
        if not found:
            raise BadFile(f"no pictures ({', '.join(SUFFIXES)}) in {root} or below")
        return sorted(found)
    table = next((f for f in (Path(listed), root / listed) if f.is_file()), None)
    if table is None:
        raise BadFile(f"no such file: {listed}, the list of clips")
    names = [line.strip() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    places = [next((f for f in (root / n, root / "sequences" / n) if f.is_dir()), None) for n in names]
    missing = [n for n, f in zip(names, places, strict=True) if f is None]
    if missing or not names:
        raise BadFile(f"{table} names {len(names)} clips, {len(missing)} of them aren't in {root}: {missing[:5]}")
    return [f for f in places if f is not None]


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder, ordered by the numbers in their names: ``im2.png`` before ``im10.png``."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
    return sorted((f for f in files if f.is_file()), key=lambda f: (natural(f.stem), f.name))


def natural(name: str) -> tuple[Any, ...]:
    """A key that orders names by the numbers in them."""
    parts = re.split(r"(\d+)", name.lower())
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def animation(path: Path) -> list[Any]:
    """The frames of an animated picture (GIF, PNG, WebP), as Pillow images."""
    pillow, sequence = require_extra("PIL.Image", "data"), require_extra("PIL.ImageSequence", "data")
    try:
        with pillow.open(path) as image:
            return [frame.convert("RGB") for frame in sequence.Iterator(image)]
    except Exception as error:
        raise BadFile(f"{path.name}: not a readable picture ({str(error).split('<_io')[0].strip()})") from error
