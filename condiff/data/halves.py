"""Pictures that hold two of one thing side by side, as the data sets of pix2pix do."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

from condiff.data.folders import find_pictures
from condiff.data.picture import Framing, as_size, decode
from condiff.data.pictures import Item, Pictures
from condiff.errors import BadFile, unknown

SIDES = ("left", "right")


def halves(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    given: str = "left",
    condition: str = "degraded",
    kind: str = "map",
    skip_bad: bool = False,
    check: bool = True,
    cache: int = 512,
    seed: int = 0,
    **framing: Any,
) -> Pictures:
    """A folder of pictures twice as wide as the two that each holds: one half is the sample, the other a condition.

    Args:
        path: the folder, searched with its subfolders.
        size: pixels of a half.
        given: the half that is the condition, ``"left"`` or ``"right"``.
        condition, kind: as in :func:`pairs`.
        skip_bad, check, cache, seed: see :class:`condiff.data.Pictures`.
        framing: channels, crop, flip, filter, background of :class:`condiff.data.Framing`; halves are cut and mirrored
            alike.

    Raises:
        BadFile: no such folder, no pictures in it, corrupt ones, or of an odd width.
        BadValue: another side or kind.
    """
    if given not in SIDES:
        raise unknown("half that is given", given, SIDES)
    if kind not in ("map", "endpoint"):
        raise unknown("kind of a picture condition", kind, ("map", "endpoint"))
    root, files = Path(path), find_pictures(path)

    def items(side: str) -> list[Item]:
        names = [f.name if f == root else f.relative_to(root).as_posix() for f in files]
        return [Item(f"{n} ({side})", functools.partial(_half, f, side)) for n, f in zip(names, files, strict=True)]

    return Pictures(
        {"x": items(SIDES[given == "left"]), condition: items(given)},
        Framing(size=as_size(size), **{"crop": "center", **framing}),
        kinds={condition: kind},
        skip_bad=skip_bad,
        check=check,
        cache=cache,
        seed=seed,
        name=root.name or str(root),
    )


def _half(file: Path, side: str) -> bytes:
    """A half of a picture, encoded without loss."""
    image = decode(file.read_bytes(), file.name)
    if image.width % 2:
        raise BadFile(f"{file.name}: {image.width} pixels wide, and so no two pictures side by side")
    middle, out = image.width // 2, io.BytesIO()
    left = (0, 0, middle, image.height)
    right = (middle, 0, image.width, image.height)
    image.crop(left if side == "left" else right).save(out, format="TIFF")
    return out.getvalue()
