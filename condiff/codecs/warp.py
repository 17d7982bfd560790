"""Geometry of pictures: backward warping by a flow field, padding to a multiple."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from condiff.errors import BadType, BadValue
from condiff.typing import Float


def warp(x: Float[Tensor, "batch c h w"], flow: Float[Tensor, "batch 2 fh fw"]) -> Float[Tensor, "batch c h w"]:
    """Backward warping: ``out(p) = x(p + flow(p))``, bilinear, the border repeated outside.

    ``flow`` is in pixels of its own grid, (right, down); one of another size than x is resized, and its lengths with
    it. A flow of 0 gives x back, whole pixels an exact shift, up to rounding.

    Raises:
        BadValue: a flow that isn't (B, 2, H, W).
    """
    if flow.ndim != 4 or flow.shape[1] != 2 or flow.shape[0] != x.shape[0]:
        raise BadValue(f"a flow for x {tuple(x.shape)} is (B, 2, H, W) in pixels, got {tuple(flow.shape)}")
    h, w = x.shape[-2:]
    flow = resize_flow(flow, (h, w))
    across = torch.arange(w, dtype=x.dtype, device=x.device) + flow[:, 0]
    down = torch.arange(h, dtype=x.dtype, device=x.device)[:, None] + flow[:, 1]
    # Corner-aligned: the first and the last pixel are at -1 and 1.
    unit = lambda place, n: 2.0 * place / max(n - 1, 1) - 1.0 if n > 1 else torch.zeros_like(place)
    grid = torch.stack([unit(across, w), unit(down, h)], dim=-1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=True)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow field (B, 2, H, W) at another size, its lengths in pixels of that size."""
    old = tuple(flow.shape[-2:])
    if old == size:
        return flow
    ratio = torch.tensor([size[1] / old[1], size[0] / old[0]], dtype=flow.dtype, device=flow.device)
    return F.interpolate(flow, size, mode="bilinear", align_corners=False) * ratio[:, None, None]


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pictures (..., H, W) padded on the right and below by reflection, and their own (H, W), to crop to afterwards.

    A side that is too short to be reflected so far is repeated at the border instead.

    Raises:
        BadType, BadValue: a multiple that isn't a positive integer.
    """
    if isinstance(multiple, bool) or not isinstance(multiple, int):
        raise BadType(f"multiple must be an integer, got {multiple!r}")
    if multiple < 1:
        raise BadValue(f"multiple must be at least 1, got {multiple}")
    h, w = x.shape[-2:]
    below, right = -h % multiple, -w % multiple
    flat = x.reshape(-1, 1, h, w)
    flat = F.pad(flat, (0, 0, 0, below), mode="reflect" if below < h else "replicate")
    flat = F.pad(flat, (0, right, 0, 0), mode="reflect" if right < w else "replicate")
    return flat.reshape(*x.shape[:-2], h + below, w + right), (h, w)
