"""Data sets of latents: encoded once, so that training a model on them doesn't run the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.data.base import Data, TensorData
from condiff.errors import BadValue


@torch.no_grad()
def latents(data: Data, codec: Codec, *, reference: str = "frames", batch: int = 64) -> TensorData:
    """Every sample encoded, and with it what is like a sample among its conditions: frames, endpoints, pictures.

    Conditions of kind 'frames' (B, F, *shape) are encoded frame by frame; those of kinds 'endpoint' and 'map' where
    they have the sample's shape. Augmentations are those of the first epoch.

    Args:
        reference: the condition that a codec which encodes beside a reference takes as one.
        batch: rows a call.

    Raises:
        BadValue: no such condition.
    """
    rows: list[Tensor] = []
    cond: dict[str, list[Tensor]] = {name: [] for name in data.kinds}
    for first in range(0, len(data), batch):
        part = data.batch(range(first, min(first + batch, len(data))))
        if codec.needs_ref == "both" and reference not in part["cond"]:
            raise BadValue(
                f"this codec encodes beside a reference, the condition {reference!r}, which {data.name} lacks"
            )
        rows.append(codec.encode(part["x"], part["cond"].get(reference)))
        for name, value in part["cond"].items():
            cond[name].append(_encoded(codec, value, data.kinds[name], tuple(data.shape)))
    return TensorData(
        torch.cat(rows),
        cond={name: torch.cat(values) for name, values in cond.items()},
        kinds=data.kinds,
        classes=data.classes,
        range="keep",
        name=f"latents of {data.name}",
    )


def _encoded(codec: Codec, value: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    if kind == "frames":
        return torch.stack([codec.encode(frame) for frame in value.unbind(1)], 1)
    if kind in ("endpoint", "map") and tuple(value.shape[1:]) == shape:
        return codec.encode(value)
    return value
