"""Frames in order: triplets to learn interpolation from, and clips to interpolate."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data.base import Refused
from condiff.data.folders import SUFFIXES
from condiff.data.picture import Framing, as_size, decode, hw, to_array, to_mode
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


def read_frames(path: str | Path | Sequence[str | Path], *, channels: int | None = None) -> Tensor:
    """Frames in order, (F, C, H, W) in [-1, 1]: of a folder, of an animated picture, or of a list of pictures.

    Raises:
        BadFile: nothing there, no picture, one that can't be read. BadValue: frames of different sizes.
    """
    if isinstance(path, str | Path):
        path = Path(path)
        if path.is_file():
            images = animation(path)
            names = [f"{path.name}, frame {i}" for i in range(len(images))]
            return _stack(images, names, channels)
        if not path.is_dir():
            raise BadFile(f"no such file or folder: {path}")
        path = frame_files(path) or _nothing(path)
    files = [Path(p) for p in path]
    for file in files:
        if not file.is_file():
            raise BadFile(f"no such file: {file}")
    return _stack([decode(f.read_bytes(), f.name) for f in files], [f.name for f in files], channels)


def _nothing(path: Path) -> list[Path]:
    raise BadFile(f"no pictures ({', '.join(SUFFIXES)}) in {path}")


def animation(path: Path) -> list[Any]:
    """The frames of an animated picture (GIF, PNG, WebP), as Pillow images."""
    pillow, sequence = require_extra("PIL.Image", "data"), require_extra("PIL.ImageSequence", "data")
    try:
        with pillow.open(path) as image:
            return [frame.convert("RGB") for frame in sequence.Iterator(image)]
    except Exception as error:
        raise BadFile(f"{path.name}: not a readable picture ({str(error).split('<_io')[0].strip()})") from error


def _stack(images: Sequence[Any], names: Sequence[str], channels: int | None) -> Tensor:
    grey = all(image.mode in ("1", "L") for image in images)
    framing = Framing(channels=channels or (1 if grey else 3))
    sizes = {hw(image) for image in images}
    if len(sizes) > 1:
        odd = next(n for n, i in zip(names, images, strict=True) if hw(i) != hw(images[0]))
        raise BadValue(f"frames of different sizes (height, width): {names[0]} {hw(images[0])}, {odd} among {sizes}")
    arrays = [to_array(to_mode(image, framing, name), framing) for image, name in zip(images, names, strict=True)]
    tops = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
    return torch.stack([torch.from_numpy(a.astype(np.float32) * (2.0 / tops[a.dtype]) - 1.0) for a in arrays])
