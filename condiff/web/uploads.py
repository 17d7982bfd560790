"""Pictures that pages send as conditions: checked before they are decoded, kept in memory, called by their hash."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict

from condiff.data import Framing, Item, Pictures
from condiff.errors import BadFile, BadValue, require_extra
from condiff.typing import Tensor
from condiff.web.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


class Uploads:
    """The newest pictures that were sent; an id is the hash of the bytes, so it means the same picture for ever."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, raw: bytes) -> tuple[str, tuple[int, int]]:
        """Keep a picture; its id and its (height, width).

        Raises:
            BadFile: not a picture, too many bytes or pixels.
        """
        size = check_picture(raw, self._limits)
        name = hashlib.sha256(raw).hexdigest()
        with self._lock:
            self._kept[name] = raw
            self._kept.move_to_end(name)
            while len(self._kept) > self._limits.uploads or sum(map(len, self._kept.values())) > self._most_bytes:
                self._kept.popitem(last=False)
        return name, size

    @property
    def _most_bytes(self) -> int:
        return max(self._limits.upload, 16 * 2**20) * 8

    def read(self, name: str, framing: Framing) -> Tensor:
        """A picture as a model takes it, (1, C, H, W) in [-1, 1].

        Raises:
            BadValue: a picture that isn't here any more.
            BadFile: one that doesn't fit the framing, such as a transparent one.
        """
        with self._lock:
            raw = self._kept.get(name)
        if raw is None:
            raise BadValue("the picture of a condition isn't on the server (any more): choose it again")
        return Pictures({"x": [Item("the picture", lambda: raw)]}, framing, name="picture").batch([0])["x"]


def check_picture(raw: bytes, limits: Limits) -> tuple[int, int]:
    """(height, width) from a picture's header; pixels are not decoded.

    Raises:
        BadFile: not a picture, too many bytes or pixels.
    """
    if len(raw) > limits.upload:
        raise BadFile(f"a picture may have {limits.upload} bytes here, got {len(raw)}")
    image = require_extra("PIL.Image", "web")
    try:
        with image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            width, height = picture.size
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, warnings, ...
        raise BadFile(f"this file is no picture that can be read here ({', '.join(FORMATS)})") from error
    if width * height > limits.pixels:
        raise BadFile(f"a picture may have {limits.pixels} pixels here, got {width} x {height}")
    return height, width
