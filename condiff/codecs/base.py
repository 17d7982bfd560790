"""Codec: ``z = encode(x)``, ``x = decode(z)``, and for codecs that look at a reference also ``ref`` in both.

Three kinds of codec have one interface:

* a fixed or learned transform of the sample (identity, wavelets, the VAE of latent diffusion): ``ref`` isn't read;
* one whose decoder takes detail from references (the frames beside the one that is made): ``decode(z, ref)``;
* one whose latent only makes sense beside a reference (the motion from it): ``encode(x, ref)`` and ``decode(z, ref)``.

What ``decode`` needs of a reference is worked out once, ``side = codec.side(ref)``, and serves many latents:
``decode(z, side=side)``. Latents are standardised, ``z = (raw - shift) / scale``, with statistics that are measured
once and stored with the weights.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condiff.errors import BadType, BadValue
from condiff.fields import checked


class Codec(nn.Module, ABC):
    """Base of the codecs. Subclasses give :meth:`analysis`, :meth:`synthesis` and :meth:`latent_shape`.

    Args:
        channels: of the latent; the statistics are one number each. None for one number for all.

    Attributes:
        needs_ref: ``"decode"`` or ``"both"``: where a reference must be given; None for codecs that read none.
        channel_axis: the axis of a batch of latents that the statistics run along, 2 for clips.
        factor: samples per latent along each spatial axis.
        shift, scale: the statistics, buffers (C,) or (), at first 0 and 1.
    """

    needs_ref: str | None = None
    channel_axis: int = 1
    factor: int = 1
    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        shape = () if channels is None else (channels,)
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    @abstractmethod
    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        """The latent before it is standardised; deterministic (a VAE gives its mean)."""

    @abstractmethod
    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        """The sample of a latent that isn't standardised, with what :meth:`side` made of the reference."""

    @abstractmethod
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a latent of a sample of the given shape.

        Raises:
            BadValue: a shape that the codec can't encode.
        """

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether samples of this shape can be encoded."""
        try:
            self.latent_shape(shape)
        except BadValue:
            return False
        return True

    def side(self, ref: Any) -> Any:
        """What decoding needs of the reference; None for codecs that read none."""
        return None

    def encode(self, x: Tensor, ref: Any = None) -> Tensor:
        """``(analysis(x, ref) - shift) / scale``: x (B, *shape) -> z (B, *latent_shape(shape)).

        Raises:
            BadType: integers. BadValue: a shape that can't be encoded, a missing reference.
        """
        if not x.dtype.is_floating_point:
            raise BadType(f"{self._name} encodes floating point samples, got {x.dtype}")
        self.latent_shape(x.shape[1:])
        if self.needs_ref == "both" and ref is None:
            raise BadValue(f"{self._name} encodes beside a reference: give ref=")
        raw = self.analysis(x, ref)
        shift, scale = self._statistics(raw)
        return (raw - shift) / scale

    def decode(self, z: Tensor, ref: Any = None, side: Any = None) -> Tensor:
        """``synthesis(shift + scale z, side)``: z (B, *latent) -> x (B, *shape).

        Args:
            ref: the reference, or
            side: what :meth:`side` made of it.

        Raises:
            BadValue: neither where one is needed, or both.
        """
        if ref is not None and side is not None:
            raise BadValue("give ref=, the reference, or side=, what side(ref) made of it, not both")
        if self.needs_ref is not None and ref is None and side is None:
            raise BadValue(f"{self._name} decodes with what it sees in a reference: give ref= or side=")
        shift, scale = self._statistics(z)
        return self.synthesis(z * scale + shift, self.side(ref) if side is None else side)

    def forward(self, x: Tensor, ref: Any = None) -> Tensor:
        """There and back: ``decode(encode(x, ref), ref)``."""
        return self.decode(self.encode(x, ref), ref)

    @torch.no_grad()
    def standardise(self, batches: Iterable[Tensor | tuple[Tensor, Any]], *, most: int = 64) -> Codec:
        """Measure ``shift`` and ``scale``: mean and standard deviation of each channel over samples.

        Args:
            batches: samples (B, ...), or pairs of samples and references.
            most: at most so many batches are read.

        Raises:
            BadValue: no batches, or a channel that never changes.
        """
        count, total, squares = 0, 0.0, 0.0
        for batch in itertools.islice(batches, most):
            raw = self.analysis(*(batch if isinstance(batch, tuple) else (batch,))).double()
            last = raw.movedim(self.channel_axis, -1)
            rows = raw.reshape(-1, 1) if self.shift.ndim == 0 else last.reshape(-1, len(self.shift))
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
        if not count:
            raise BadValue("no samples to measure the statistics of latents on")
        mean = torch.as_tensor(total) / count
        std = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0.0).sqrt()
        if not bool((std > 0.0).all() & std.isfinite().all()):
            raise BadValue(f"latents must be finite and vary in every channel, got standard deviations {std.tolist()}")
        self.shift.copy_(mean.reshape(self.shift.shape))
        self.scale.copy_(std.reshape(self.scale.shape))
        return self

    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, along the channels of z."""
        shape = (-1, *(1,) * (z.ndim - self.channel_axis - 1)) if self.shift.ndim else ()
        return self.shift.reshape(shape).to(z.dtype), self.scale.reshape(shape).to(z.dtype)

    @property
    def _name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, kw_only=True)
@checked
class IdentityConfig:
    """An :class:`Identity`."""

    def build(self) -> Identity:
        return Identity(self)


class Identity(Codec):
    """Samples as they are: diffusion in pixel space, through the same interface."""

    def __init__(self, config: IdentityConfig | None = None) -> None:
        super().__init__()
        self.config = config or IdentityConfig()

    def analysis(self, x: Tensor, ref: Any = None) -> Tensor:
        return x

    def synthesis(self, raw: Tensor, side: Any = None) -> Tensor:
        return raw

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)
