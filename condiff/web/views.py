"""What a page shows of samples: pictures as PNG, text, curves and points as numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff import figures
from condiff.data import Data
from condiff.errors import Incompatible, NonFinite, require_extra
from condiff.methods import texts
from condiff.methods.kinds import SeriesWindows, Volumes, kind_of

View = dict[str, Any]  # {"kind": ..., "items": one for each sample}
Viewer = Callable[[Tensor], View]
MASK = "\N{LIGHT SHADE}"
MOST_SIDE = 1024  # pixels of a shown picture
MOST_POINTS = 400  # of a drawn curve
MOST_CURVES = 8
PACE = 125  # milliseconds of a frame


def viewer_of(data: Data) -> Viewer:
    """How samples like those of ``data`` are shown.

    Raises:
        Incompatible: samples of several variables.
    """
    if isinstance(data.shape, Mapping):
        raise Incompatible(f"{data.name} holds samples of several variables, which no page shows: use `condiff sample`")
    if data.vocab is not None:
        return lambda x: written(x, data)
    if len(data.shape) == 4:
        return slices if isinstance(kind_of(data), Volumes) else clips
    if len(data.shape) == 3:
        return pictures
    if isinstance(kind_of(data), SeriesWindows):
        return lambda x: drawn(x[..., :1])  # the other channels are what a series was before
    return lambda x: drawn(data.restore(x))


def pictures(x: Tensor) -> View:
    """Images (B, C, H, W) in [-1, 1]; of channels that no picture has, each beside the other in grey."""
    if x.shape[1] not in figures.CHANNELS:
        x = torch.cat(x.split(1, 1), -1)
    return {"kind": "picture", "items": [_png(pixels[None]) for pixels in figures.to_uint8(x)]}


def slices(x: Tensor) -> View:
    """Volumes (B, C, D, H, W) in the middle of their first axis."""
    return pictures(x[:, :, x.shape[2] // 2])


def clips(x: Tensor) -> View:
    """Videos (B, F, C, H, W) as pictures that move."""
    return {"kind": "picture", "items": [_png(figures.to_uint8(frames)) for frames in x]}


def written(x: Tensor, data: Data) -> View:
    """Tokens (B, L) as text, or as numbers where there is no tokenizer; MASK as a shade."""
    own, rows = texts.find_tokenizer(data), x.tolist()
    if own is not None:
        return {"kind": "text", "mask": MASK, "items": [own.decode(row, MASK) for row in rows]}
    mask = data.vocab
    words = [" ".join(MASK if token == mask else str(token) for token in row) for row in rows]
    return {"kind": "text", "mask": MASK, "items": words}


def drawn(x: Tensor) -> View:
    """Series (B, L, C) as curves, vectors (B, D) as one curve, pairs (B, 2) as points: lists of numbers."""
    x = x.detach().float().cpu()
    if x.ndim == 2 and x.shape[1] == 2:
        return {"kind": "point", "items": _rounded(x)}
    x = x[..., None] if x.ndim == 2 else x
    return {"kind": "curve", "items": _rounded(_thinned(x, MOST_POINTS)[..., :MOST_CURVES].transpose(1, 2))}


def _thinned(x: Tensor, most: int) -> Tensor:
    """At most so many of the places along the second dimension."""
    if x.shape[1] <= most:
        return x
    return x[:, torch.linspace(0, x.shape[1] - 1, most).round().long()]


def _rounded(x: Tensor) -> list[Any]:
    """Numbers with six digits: what a screen can show."""
    return [[_short(v) for v in row] for row in x.tolist()]


def _short(value: Any) -> Any:
    return [_short(v) for v in value] if isinstance(value, list) else float(f"{value:.6g}")


def _png(frames: Any) -> str:
    """Pictures (F, H, W, C) as a PNG no larger than a screen, which moves if there are several, as a data URL."""
    image = require_extra("PIL.Image", "web")
    shown = [image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels) for pixels in frames]
    for picture in shown:
        if max(picture.size) > MOST_SIDE:
            picture.thumbnail((MOST_SIDE, MOST_SIDE))
    buffer, moving = io.BytesIO(), {"save_all": True, "append_images": shown[1:], "duration": PACE, "loop": 0}
    shown[0].save(buffer, "PNG", compress_level=1, **(moving if len(shown) > 1 else {}))
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def finite(x: Tensor) -> bool:
    """Whether everything in samples is a number."""
    return not x.is_floating_point() or bool(torch.isfinite(x).all())


def check_finite(x: Tensor) -> None:
    """
    Raises:
        NonFinite: samples that hold NaN or infinity.
    """
    if not finite(x):
        raise NonFinite(
            "with these settings samples end as NaN or infinity: another solver, more steps or less guidance may help"
        )


def names_of(made_names: Sequence[str] | None, num: int) -> list[str]:
    """What to call each sample."""
    return list(made_names) if made_names else [str(i + 1) for i in range(num)]
