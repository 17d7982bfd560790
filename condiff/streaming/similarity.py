"""Frames that are nearly the last one needn't be worked on again (stochastic similarity filter, Kodaira 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue
from condiff.random import as_source


class SimilarityFilter:
    """Skips a frame with probability ``max(0, (S - threshold) / (1 - threshold))``, S its cosine similarity with the
    last frame that wasn't skipped.

    The first frame is never skipped, and none after more than ``max_skip`` in a row: of a still picture one frame in
    ``max_skip + 2`` is worked on. The count begins anew whenever a frame is.

    Args:
        threshold: eta, between -1 and 1; 1 and above skips nothing.
        max_skip: skips in a row after which the next frame is worked on.
        seed: of the draws.

    Example:
        >>> keep = SimilarityFilter(seed=0)
        >>> worked_on = [frame for frame in frames if keep(frame)]
    """

    def __init__(self, threshold: float = 0.98, max_skip: int = 10, seed: int = 0) -> None:
        if not threshold >= -1.0:
            raise BadValue(f"threshold is a cosine, at least -1, got {threshold}")
        if isinstance(max_skip, bool) or not isinstance(max_skip, int) or max_skip < 0:
            raise BadValue(f"max_skip must be an integer >= 0, got {max_skip!r}")
        self.threshold, self.max_skip, self.seed = threshold, max_skip, seed
        self.generator = torch.Generator()
        self.start()

    def start(self) -> None:
        """Begin anew: forget the last frame, and draw from the seed again."""
        self.generator.manual_seed(self.seed)
        self.skipped: int = 0
        self._last: Tensor | None = None

    def __call__(self, frame: Tensor) -> bool:
        """Whether the frame is to be worked on; a floating-point tensor of any one shape."""
        if not isinstance(frame, Tensor) or not frame.is_floating_point():
            raise BadType(f"frames are floating-point tensors, got {frame!r}"[:120])
        if self._skips(frame):
            self.skipped += 1
            return False
        self.skipped, self._last = 0, frame.detach().clone()
        return True

    def _skips(self, frame: Tensor) -> bool:
        if self._last is None or self.threshold >= 1.0:
            return False
        probability = self.probability(similarity(frame, self._last))
        drawn = float(as_source(self.generator).uniform((1,)))
        return drawn < probability and self.skipped <= self.max_skip

    def probability(self, similarity: float) -> float:
        """Of skipping a frame of this similarity, the count apart."""
        if self.threshold >= 1.0:
            return 0.0
        return max(0.0, (similarity - self.threshold) / (1.0 - self.threshold))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by name: the frame, the count, the state of the draws."""
        state = {"generator": self.generator.get_state(), "skipped": torch.tensor(self.skipped)}
        return state if self._last is None else {**state, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        self.skipped, self._last = int(state["skipped"]), state.get("last")


def similarity(a: Tensor, b: Tensor) -> float:
    """Cosine of two frames of one shape, of all their values; frames of zeros are alike.

    Raises:
        BadValue: different shapes.
    """
    if a.shape != b.shape:
        raise BadValue(f"frames of one stream have one shape, got {tuple(a.shape)} after {tuple(b.shape)}")
    a, b = a.flatten().double(), b.to(a.device).flatten().double()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else float(bool(torch.equal(a, b)))
