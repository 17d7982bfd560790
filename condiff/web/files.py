"""Files of samples for download, each with the settings that it was made with inside, where it has a place for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from condiff.errors import require_extra

CHUNK = "condiff"  # the text chunk of a PNG that holds the settings


def written(write: Callable[[Path], Path | None]) -> tuple[str, bytes]:
    """The ending and the content of the file that ``write(folder)`` leaves; both empty where it leaves none."""
    with TemporaryDirectory(prefix="condiff-") as folder:
        path = write(Path(folder))
        return ("", b"") if path is None else (path.suffix.removeprefix("."), path.read_bytes())


def png(picture: bytes, metadata: str) -> bytes:
    """A PNG with a text chunk.

    Args:
        metadata: JSON, in ASCII.
    """
    image, info = require_extra("PIL.Image", "web"), require_extra("PIL.PngImagePlugin", "web").PngInfo()
    info.add_text(CHUNK, metadata)
    buffer = io.BytesIO()
    with image.open(io.BytesIO(picture)) as opened:
        opened.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def npz(x: Tensor, cond: Mapping[str, Tensor], metadata: str) -> bytes:
    """``x`` and its conditions by name, with ``settings`` as text; no pickle."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: value.detach().cpu().numpy() for name, value in {**cond, "x": x}.items()}
    np.savez(buffer, allow_pickle=False, **{**arrays, "settings": np.array(metadata)})
    return buffer.getvalue()
