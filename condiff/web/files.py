"""Files of samples for download, each with the settings that it was made with inside, where it has a place for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from condiff.errors import require_extra

CHUNK = "condiff"  # the text chunk of a PNG that holds the settings
OFFERED = {  # ending -> media type
    ".png": "image/png",
    ".npz": "application/octet-stream",
    ".txt": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".gif": "image/gif",
    ".mp4": "video/mp4",
    ".json": "application/json",
}
Write = Callable[[Path], Path | None]  # into a folder; None where nothing is written


def written(write: Write) -> tuple[str, bytes]:
    """The ending and the content of the file that is written; both empty for none."""
    with TemporaryDirectory(prefix="condiff-") as folder:
        path = write(Path(folder))
        return ("", b"") if path is None else (path.suffix, path.read_bytes())


def with_settings(ending: str, write: Write, metadata: str) -> bytes:
    """The content of the file that is written, and the settings in it if it is a PNG or an archive of arrays.

    Args:
        metadata: JSON, in ASCII.
    """
    content = written(write)[1]
    return {".png": png, ".npz": npz}.get(ending, lambda same, _: same)(content, metadata)


def png(picture: bytes, metadata: str) -> bytes:
    """A PNG with a text chunk."""
    image, info = require_extra("PIL.Image", "web"), require_extra("PIL.PngImagePlugin", "web").PngInfo()
    info.add_text(CHUNK, metadata)
    buffer = io.BytesIO()
    with image.open(io.BytesIO(picture)) as opened:
        opened.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def npz(archive: bytes, metadata: str) -> bytes:
    """Arrays with one more, ``settings``, that holds text."""
    buffer = io.BytesIO()
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        np.savez(buffer, allow_pickle=False, **{**arrays, "settings": np.array(metadata)})
    return buffer.getvalue()


def save_array(x: Tensor, folder: Path) -> Path:
    """Samples alone as an archive."""
    np.savez(folder / "samples.npz", x=x.numpy())
    return folder / "samples.npz"
