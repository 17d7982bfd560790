"""Reconstruction: what codecs are trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from condiff.codecs import Codec
from condiff.errors import BadType, BadValue, unknown
from condiff.random import Source
from condiff.training.batch import Batch, as_batch
from condiff.training.objective import DISTANCES, Distance, Losses, masked_mean


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """``d(decode(encode(x)), x) + penalty |z|^2``: an objective for a :class:`~condiff.codecs.Codec`.

    Args:
        loss: ``"l1"``, ``"l2"``, ``"huber"`` or a :class:`Distance`.
        penalty: on the mean square of the latent, which keeps it from growing.
        reference: the condition that the codec takes as its reference, for one that needs a reference.
        features: maps samples to something that is compared beside them, such as a perceptual network's activations.
        feature_weight: of that comparison.
    """

    loss: str | Distance = "l1"
    penalty: float = 1e-4
    reference: str = "frames"
    features: Callable[[Tensor], Tensor] | None = None
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in DISTANCES:
            raise unknown("loss", self.loss, DISTANCES)
        if not (self.penalty >= 0.0 and self.feature_weight >= 0.0):
            raise BadValue(f"penalty and feature_weight must be >= 0, got {self.penalty} and {self.feature_weight}")

    def __call__(
        self, codec: Codec, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch; nothing is drawn.

        Raises:
            BadType: what is trained isn't a codec. BadValue: no condition of the reference's name.
        """
        if not isinstance(codec, Codec):
            raise BadType(f"reconstruction trains a codec, got a {type(codec).__name__}")
        batch = as_batch(batch)
        x = cast(Tensor, batch.x)
        ref = self._reference(codec, batch)
        z = codec.encode(x, ref)
        said = codec.decode(z, ref)
        distance = DISTANCES[self.loss] if isinstance(self.loss, str) else self.loss
        parts = {"error": masked_mean(distance(said, x), cast("Tensor | None", batch.mask))}
        parts["penalty"] = self.penalty * z.square().flatten(1).mean(1)
        if self.features is not None:
            error = distance(self.features(said), self.features(x)).flatten(1).mean(1)
            parts["features"] = self.feature_weight * error
        per_sample = torch.stack(list(parts.values())).sum(0)
        weighted = per_sample if batch.weight is None else per_sample * batch.weight.to(per_sample)
        return Losses(weighted.mean(), per_sample, {k: v.detach().mean() for k, v in parts.items()})

    def _reference(self, codec: Codec, batch: Batch) -> Tensor | None:
        if codec.needs_ref is None:
            return None
        if self.reference not in batch.cond:
            raise unknown("condition, which the codec takes as its reference,", self.reference, batch.cond)
        return batch.cond[self.reference].value
