"""Pictures that networks are told, from PIL or tensors, of one size and range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.errors import BadType, BadValue


def pictures(given: Sequence[Any] | Tensor, size: tuple[int, int], device: Any, channels: int = 3) -> Tensor:
    """Pictures (PIL), or a tensor (B, C, H, W) in [-1, 1], as such a tensor.

    Raises:
        BadType: neither.
        BadValue: pictures of another size, number of channels or range.
    """
    tensor = given if isinstance(given, Tensor) else torch.stack([_picture(one, channels) for one in given])
    tensor = tensor.to(device=device, dtype=torch.get_default_dtype())
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != (channels, *size):
        raise BadValue(f"pictures of shape {(channels, *size)} are wanted, got {tuple(tensor.shape[1:])}")
    if float(tensor.abs().amax()) > 1.0:
        raise BadValue(f"pictures lie in [-1, 1], got {float(tensor.amin()):g} .. {float(tensor.amax()):g}")
    return tensor


def _picture(given: Any, channels: int) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if not hasattr(given, "convert"):
        raise BadType(f"pictures are PIL images or tensors (C, H, W), got {type(given).__name__}")
    values = np.asarray(given.convert("RGB" if channels == 3 else "L"), dtype=np.float32)
    values = values if values.ndim == 3 else values[:, :, None]
    return torch.from_numpy(values / 255.0 * 2.0 - 1.0).permute(2, 0, 1)
