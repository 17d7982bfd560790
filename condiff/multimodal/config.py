"""The configuration of a multimodal denoiser without its process, as a recipe holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from condiff.fields import checked
from condiff.multimodal.modalities import Modalities


class Parts(NamedTuple):
    """A trunk and what it carries: the first arguments of :class:`~condiff.multimodal.MultiModal`."""

    network: nn.Module
    modalities: Modalities


@dataclass(frozen=True, kw_only=True)
@checked
class MultiModalConfig:
    """A trunk with modalities.

    Args:
        network: configuration of the trunk, of the latent's shape; conditions of the modalities' names let it be told.
        modalities, weights, latent, mixed: see :class:`~condiff.multimodal.Modalities`.
    """

    network: Any
    modalities: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    latent: tuple[int, ...] | None = None
    mixed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latent."""
        return tuple(self.network.shape)

    @property
    def conditions(self) -> Mapping[str, Any]:
        """What the trunk is told, known modalities among it."""
        return self.network.conditions

    def build(self) -> Parts:
        """Both, with fresh weights."""
        return Parts(self.network.build(), Modalities(self.modalities, self.weights, self.latent, self.mixed))
