"""One clip as a tensor: from a folder, an animated picture, a video file, or a list of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data.frames import frame_files
from condiff.data.picture import Framing, decode, hw, is_grey, to_array, to_mode
from condiff.data.video_files import ANIMATED, VIDEOS, footage
from condiff.errors import BadFile, BadValue


def read_frames(
    path: str | Path | Sequence[str | Path], *, channels: int | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Frames in order, (F, C, H, W) in [-1, 1]: of a folder (ordered by the numbers in the names), of an animated
    picture or a video file, or of a list of pictures.

    Args:
        channels: 1 or 3; by default 1 if all frames are grey, else 3.
        size: (height, width) to resize and crop them to; as they are when None.

    Raises:
        BadFile: nothing there, no picture, one that can't be read. BadValue: frames of different sizes.
        MissingExtra: a video file, and nothing that reads it.
    """
    images, names = _listed(path) if not isinstance(path, str | Path) else _recorded(Path(path))
    framing = Framing(size=size, channels=channels or (1 if all(is_grey(image) for image in images) else 3))
    for name, image in zip(names, images, strict=True):
        if size is None and hw(image) != hw(images[0]):
            sizes = f"{names[0]} has {hw(images[0])}, {name} {hw(image)}"
            raise BadValue(f"frames of different sizes (height, width): {sizes}")
    arrays = [to_array(to_mode(image, framing, name), framing) for image, name in zip(images, names, strict=True)]
    return torch.stack([scaled(array) for array in arrays])


def scaled(array: np.ndarray) -> Tensor:
    """Bytes or 16-bit numbers as floats in [-1, 1]."""
    top = 255.0 if array.dtype == np.uint8 else 65535.0
    return torch.from_numpy(array.astype(np.float32) * (2.0 / top) - 1.0)


def _recorded(path: Path) -> tuple[list[Any], list[str]]:
    if not path.exists():
        raise BadFile(f"no such file or folder: {path}")
    if path.is_dir():
        files = frame_files(path)
        if not files:
            raise BadFile(f"no pictures in {path}")
        return _listed(files)
    if path.suffix.lower() not in (*ANIMATED, *VIDEOS):
        return _listed([path])
    one = footage(path)
    return one.frames(range(one.count)), [f"{path.name}, frame {i}" for i in range(one.count)]


def _listed(paths: Sequence[str | Path]) -> tuple[list[Any], list[str]]:
    files = [Path(p) for p in paths]
    for file in files:
        if not file.is_file():
            raise BadFile(f"no such file: {file}")
    return [decode(f.read_bytes(), f.name) for f in files], [f.name for f in files]
