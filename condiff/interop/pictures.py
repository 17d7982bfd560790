"""Pictures that networks are told, from PIL or tensors, of one size and range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.errors import BadType, BadValue


def pictures(given: Any, size: tuple[int, int], device: Any, channels: int = 3, count: int | None = None) -> Tensor:
    """A picture (PIL), a list of them, or a tensor (B, C, H, W) in [-1, 1], as such a tensor.

    Args:
        count: how many are wanted; one then stands for all.

    Raises:
        BadType: neither.
        BadValue: pictures of another size, number, number of channels or range.
    """
    several = given if isinstance(given, Tensor | Sequence) else [given]
    tensor = several if isinstance(several, Tensor) else torch.stack([_picture(one, channels) for one in several])
    tensor = tensor.to(device=device, dtype=torch.get_default_dtype())
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != (channels, *size):
        raise BadValue(f"pictures of shape {(channels, *size)} are wanted, got {tuple(tensor.shape[1:])}")
    if float(tensor.abs().amax()) > 1.0:
        raise BadValue(f"pictures lie in [-1, 1], got {float(tensor.amin()):g} .. {float(tensor.amax()):g}")
    if count is None or len(tensor) == count:
        return tensor
    if len(tensor) != 1:
        raise BadValue(f"one picture for all or one per sample is wanted, got {len(tensor)} for {count} samples")
    return tensor.expand(count, -1, -1, -1)


def _picture(given: Any, channels: int) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if not hasattr(given, "convert"):
        raise BadType(f"pictures are PIL images or tensors (C, H, W), got {type(given).__name__}")
    values = np.asarray(given.convert("RGB" if channels == 3 else "L"), dtype=np.float32)
    values = values if values.ndim == 3 else values[:, :, None]
    return torch.from_numpy(values / 255.0 * 2.0 - 1.0).permute(2, 0, 1)
