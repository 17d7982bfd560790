"""Data sets of latents: encoded once, or batch by batch, so that a model is trained in the space of a codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.data.base import Data, TensorData
from condiff.errors import BadValue


@torch.no_grad()
def latents(data: Data, codec: Codec, *, reference: str = "frames", batch: int = 64, device: Any = None) -> TensorData:
    """Every sample encoded, and with it what is like a sample among its conditions: frames, endpoints, pictures.

    Conditions of kind 'frames' (B, F, *shape) are encoded frame by frame; those of kinds 'endpoint' and 'map' where
    they have the sample's sides and the codec takes them. Augmentations are those of the first epoch. See
    :class:`Encoded` for data that is too large to be kept.

    Args:
        reference: the condition that a codec which encodes beside a reference takes as one.
        batch: rows a call.
        device: where the codec is; rows come back from there.

    Raises:
        BadValue: no such condition.
    """
    encoded = Encoded(data, codec, reference=reference, device=device)
    parts = [encoded.batch(range(i, min(i + batch, len(data)))) for i in range(0, len(data), batch)]
    return TensorData(
        torch.cat([part["x"] for part in parts]),
        cond={name: torch.cat([part["cond"][name] for part in parts]) for name in data.kinds},
        kinds=data.kinds,
        classes=data.classes,
        range="keep",
        name=encoded.name,
    )


class Encoded(Data):
    """A data set seen through a codec, encoded when it is read: samples, and conditions that are like them.

    Its fingerprint is that of the data: the codec belongs to the model.

    Args:
        reference, device: as for :func:`latents`.

    Raises:
        BadValue: samples that the codec doesn't take, no such reference.
    """

    def __init__(self, data: Data, codec: Codec, *, reference: str = "frames", device: Any = None) -> None:
        if codec.needs_ref == "both" and reference not in data.kinds:
            raise BadValue(
                f"this codec encodes beside a reference, the condition {reference!r}, which {data.name} lacks"
            )
        self.data, self.codec, self.reference, self.device = data, codec, reference, device
        self.name, self.shape = f"latents of {data.name}", codec.latent_shape(data.shape)
        self.kinds, self.classes, self.paired = data.kinds, data.classes, data.paired
        self.refused, self.notes = data.refused, data.notes

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> Tensor | None:
        return self.data.labels

    @property
    def value_range(self) -> tuple[float, float]:
        x = self.batch([0])["x"]
        return float(x.min()), float(x.max())

    @torch.no_grad()
    def restore(self, x: Tensor) -> Tensor:
        return self.data.restore(self.codec.decode(x))

    @torch.no_grad()
    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        rows = self.data.batch(index, epoch)
        if self.device is None:
            return self._encode(rows)
        return _to(self._encode(_to(rows, self.device)), rows["x"].device)

    def _encode(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        x = self.codec.encode(rows["x"], rows["cond"].get(self.reference))
        return {"x": x, "cond": encode_conditions(self.codec, rows["cond"], self.kinds, self.data.shape)}

    def _content(self, digest: Any) -> None:
        self.data._content(digest)

    def fingerprint(self) -> str:
        return self.data.fingerprint()


def _to(rows: Mapping[str, Any], device: Any) -> dict[str, Any]:
    return {"x": rows["x"].to(device), "cond": {name: value.to(device) for name, value in rows["cond"].items()}}


def encode_conditions(
    codec: Codec, cond: Mapping[str, Tensor], kinds: Mapping[str, str], shape: Sequence[int]
) -> dict[str, Tensor]:
    """The conditions of samples of a shape, with those that are like samples encoded as :func:`latents` says."""
    return {name: _encoded(codec, value, kinds[name], tuple(shape)) for name, value in cond.items()}


def _encoded(codec: Codec, value: Tensor, kind: str, shape: tuple[int, ...]) -> Tensor:
    if kind == "frames":
        return torch.stack([codec.encode(frame) for frame in value.unbind(1)], 1)
    own = tuple(value.shape[1:])
    if kind in ("endpoint", "map") and own[1:] == shape[1:] and codec.takes(own):
        return codec.encode(value)
    return value
