"""One picture: bytes -> array (C, H, W), with Pillow: decoding, channels, resizing and cropping.

8-bit pictures stay uint8 and 16-bit ones uint16 until they become a batch; nothing is rounded to 8 bits and no
alpha channel disappears on the way without being asked to.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from condiff.errors import BadFile, BadValue, require_extra, unknown

FILTERS = ("lanczos", "area", "bicubic", "bilinear", "nearest")
CROPS = ("center", "random")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How pictures become arrays of one shape.

    Args:
        size: (height, width) in pixels; None: as they are, which must then be one size for all.
        channels: 1 (luma), 3 (RGB), 4 (RGBA), or None: 1 if all pictures are grey, else 3.
        crop: ``"center"`` or ``"random"``: scale so that the picture covers ``size``, then cut; None: squeeze the whole
            picture into ``size``, whatever its proportions.
        flip: mirror left and right in half of the reads.
        filter: ``lanczos``, ``area``, ``bicubic``, ``bilinear`` or ``nearest``.
        background: colour under transparent pixels, such as ``"white"`` or ``"#808080"``, when ``channels`` has
            no alpha; None refuses pictures with transparent pixels.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    crop: str | None = "center"
    flip: bool = False
    filter: str = "lanczos"
    background: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not (len(self.size) == 2 and all(isinstance(n, int) and n > 0 for n in self.size)):
            raise BadValue(f"size is a positive number of pixels or (height, width), got {self.size}")
        if self.channels is not None and self.channels not in MODES:
            raise BadValue(f"pictures have 1, 3 or 4 channels, got channels={self.channels}")
        if self.crop is not None and self.crop not in CROPS:
            raise unknown("crop", self.crop, CROPS)
        if self.filter not in FILTERS:
            raise unknown("filter", self.filter, FILTERS)


def as_size(size: Any) -> tuple[int, int] | None:
    """``64`` -> ``(64, 64)``; pairs and None as they are."""
    return (size, size) if isinstance(size, int) else tuple(size) if size is not None else None


def decode(raw: bytes, name: str) -> Any:
    """A fully decoded, upright Pillow image.

    Raises:
        BadFile: naming the picture and what is wrong with it (not a picture, truncated, animated, too large).
    """
    image_module, ops = require_extra("PIL.Image", "data"), require_extra("PIL.ImageOps", "data")
    try:
        image = image_module.open(io.BytesIO(raw))
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = str(error).split("<_io")[0].strip() or type(error).__name__
        raise BadFile(f"{name}: not a readable picture ({reason})") from error
    if frames > 1 and image.format != "MPO":  # cameras store a preview as a second frame
        raise BadFile(f"{name}: holds {frames} frames, not one picture")
    return ops.exif_transpose(image)


def is_grey(image: Any) -> bool:
    """Whether the picture has no colour channels."""
    return image.mode in ("1", "L", "LA", "I", *_DEEP)


def _opaque(image: Any, background: str | None, name: str) -> Any:
    """RGBA or LA without its alpha channel."""
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] < 255:
        if background is None:
            raise BadFile(f"{name}: has transparent pixels: say background='white' (or another colour), or channels=4")
        below = require_extra("PIL.Image", "data").new("RGBA", image.size, background)
        image = require_extra("PIL.Image", "data").alpha_composite(below, image.convert("RGBA"))
    return image.convert("RGB") if image.mode == "RGBA" else image.convert("L")


def _deep(image: Any, name: str) -> np.ndarray:
    """A 16-bit grey picture as uint16 (H, W)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadFile(f"{name}: 32-bit values from {values.min()} to {values.max()}; store such data with arrays()")
    return values.astype(np.uint16)


def to_mode(image: Any, framing: Framing, name: str) -> Any:
    """The picture with the wanted channels: a Pillow image, or a uint16 array (H, W) for 16-bit grey.

    Raises:
        BadFile: floating-point pictures, and transparency without a background.
    """
    channels = framing.channels or 3
    if image.mode in ("I", *_DEEP):
        return _deep(image, name)
    if image.mode == "F":
        raise BadFile(f"{name}: a floating-point picture has no declared range; store such data with arrays()")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode in ("RGBA", "LA") and channels != 4:
        grey = image.mode == "LA"
        image = _opaque(image, framing.background, name)
        image = image.convert("L") if grey and channels == 1 else image
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _box(have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the smallest picture of the same proportions that covers ``want``."""
    factor = max(want[0] / have[0], want[1] / have[1])
    return max(want[0], round(have[0] * factor)), max(want[1], round(have[1] * factor))


def resize(image: Any, size: tuple[int, int], filter: str) -> Any:
    """A Pillow image or a uint16 array (H, W) at another (height, width)."""
    module = require_extra("PIL.Image", "data")
    resampling = getattr(module.Resampling, {"area": "BOX"}.get(filter, filter.upper()))
    if isinstance(image, np.ndarray):
        wide = module.fromarray(image.astype(np.float32)).resize(size[::-1], resampling)
        return np.clip(np.rint(np.asarray(wide)), 0, 65535).astype(np.uint16)
    return image.resize(size[::-1], resampling)


def hw(image: Any) -> tuple[int, int]:
    """(height, width)."""
    return image.shape if isinstance(image, np.ndarray) else image.size[::-1]


def to_array(image: Any, framing: Framing) -> np.ndarray:
    """The picture of :func:`to_mode` scaled, and cut unless that is random: (C, H, W), uint8 or uint16."""
    if framing.size is not None:
        target = framing.size if framing.crop is None else _box(hw(image), framing.size)
        image = image if hw(image) == target else resize(image, target, framing.filter)
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if array.dtype == np.uint16 and framing.channels in (3, 4):
        alpha = np.full_like(array, 65535)
        array = np.concatenate([array] * 3 + [alpha] * (framing.channels - 3))
    return np.ascontiguousarray(cut(array, framing.size) if framing.crop == "center" else array)


def cut(array: np.ndarray, size: tuple[int, int] | None, down: float = 0.5, right: float = 0.5) -> np.ndarray:
    """A window of ``size``; ``down`` and ``right`` in [0, 1) say where in what there is to spare."""
    if size is None:
        return array
    spare = array.shape[1] - size[0], array.shape[2] - size[1]
    top, left = int(down * (spare[0] + 1)), int(right * (spare[1] + 1))
    return array[:, top : top + size[0], left : left + size[1]]
