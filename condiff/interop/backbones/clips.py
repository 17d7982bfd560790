"""What families of videos have in common: a number of frames, and latents (F, C, H, W)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from condiff.conditions import Condition, Conditions
from condiff.errors import BadValue
from condiff.interop.backbones.base import Family


class Clips(Family):
    """Base: a pipeline of videos.

    Attributes:
        stride: latent frames that the network takes together.
    """

    stride = 1

    @property
    def every(self) -> int:
        """Frames per latent, the first one apart."""
        return self.pipe.vae_scale_factor_temporal

    @property
    def factor(self) -> int:
        return self.pipe.vae_scale_factor_spatial

    @abstractmethod
    def trained_frames(self) -> int:
        """Frames that the pipeline makes unless told."""

    def checked_frames(self, frames: int | None) -> int:
        """
        Raises:
            BadValue: frames that no number of latents stands for.
        """
        frames = self.trained_frames() if frames is None else frames
        if frames < 1 or (frames - 1) % self.every or (1 + (frames - 1) // self.every) % self.stride:
            first = 1 + (self.stride - 1) * self.every
            raise BadValue(
                f"frames= must be {first} + a multiple of {self.stride * self.every} for {type(self.pipe).__name__}, "
                f"got {frames}"
            )
        return frames

    def latent_shape(self) -> tuple[int, ...]:
        assert self.frames is not None
        channels, height, width = super().latent_shape()
        return 1 + (self.frames - 1) // self.every, channels, height, width


def prompts(family: Family, entries: Sequence[Any]) -> Conditions:
    """Prompts by the pipeline's one text encoder, padded to a length."""
    family.text_encoders("text_encoder")
    tokens, _ = family.pipe.encode_prompt(
        list(entries), do_classifier_free_guidance=False, max_sequence_length=family.length, device=family.device
    )
    return Conditions({"prompt": Condition(tokens, "tokens")})
