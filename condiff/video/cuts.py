"""Scene cuts: where one frame is no continuation of the one before."""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.typing import Float


def histogram_distance(
    a: Float[Tensor, "batch *shape"], b: Float[Tensor, "batch *shape"], bins: int = 32
) -> Float[Tensor, "batch"]:
    """Half the L1 distance of the histograms of values in [-1, 1], (B,): 0 for the same, 1 for disjoint ones.

    Motion leaves it small, another scene doesn't.
    """
    if bins < 2:
        raise BadValue(f"a histogram needs at least 2 bins, got {bins}")
    one, two = (_histogram(x, bins) for x in (a, b))
    return 0.5 * (one - two).abs().sum(1)


def _histogram(x: Tensor, bins: int) -> Tensor:
    """Shares of the values in each bin, (B, bins); a value between the middles of two bins counts for both in part, so
    that a small change of brightness is a small distance."""
    place = ((x.flatten(1).float() + 1.0) * 0.5 * (bins - 1)).clamp(0.0, bins - 1.0)
    low = place.floor().clamp(max=bins - 2)
    part = place - low
    out = torch.zeros(x.shape[0], bins, device=x.device)
    out.scatter_add_(1, low.long(), 1.0 - part)
    out.scatter_add_(1, low.long() + 1, part)
    return out / place.shape[1]


def scene_cuts(frames: Float[Tensor, "batch *shape"], threshold: float = 0.5, bins: int = 32) -> list[int]:
    """The indices i after which a new scene seems to begin: frames i and i + 1 are further apart than the threshold."""
    if not 0.0 < threshold <= 1.0:
        raise BadValue(f"the threshold of a cut lies in (0, 1], got {threshold}")
    distance = histogram_distance(frames[:-1], frames[1:], bins)
    return torch.nonzero(distance > threshold)[:, 0].tolist()
