"""Deterministic splits into a training and a held-out part."""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.data.base import Data, Subset
from condiff.data.text import TokenData
from condiff.data.unpaired import Unpaired
from condiff.data.windows import Windows
from condiff.errors import BadValue


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)]


def split_indices(n: int, held_out: float, seed: int = 0, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sorted indices (training, held out) of ``n`` rows; with labels, the same fraction of each class is held out.

    Args:
        held_out: fraction in (0, 1), rounded per class; a class of one row stays in training.

    Raises:
        BadValue: a fraction that leaves one of the parts empty.
    """
    if not 0.0 < held_out < 1.0:
        raise BadValue(f"held_out is a fraction in (0, 1), got {held_out}")
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.arange(n)]
    if labels is not None:
        groups = [torch.nonzero(labels == c).flatten() for c in labels.unique().tolist()]
    held = [_shuffled(g, generator)[: min(round(held_out * len(g)), len(g) - 1)] for g in groups]
    is_held = torch.zeros(n, dtype=torch.bool)
    is_held[torch.cat(held)] = True
    if not is_held.any() or is_held.all():
        least = f"{int(0.5 / held_out) + 1} or more" + (" of a class" if labels is not None else "")
        raise BadValue(f"held_out={held_out} of {n} rows leaves one part empty: {least} are needed")
    return torch.nonzero(~is_held).flatten(), torch.nonzero(is_held).flatten()


def split(data: Data, held_out: float = 0.1, seed: int = 0) -> tuple[Data, Data]:
    """``(training, held out)`` parts of a data set, stratified by label where there is one; of both of two unpaired.

    Of a long sequence of tokens, and of series, the end is held out.
    """
    if isinstance(data, TokenData | Windows):
        return data.cut(held_out)
    if isinstance(data, Unpaired):
        halves = zip(split(data.source, held_out, seed), split(data.target, held_out, seed), strict=True)
        (a, x), (b, y) = halves
        named = (f"{data.name}/train", f"{data.name}/held-out")
        return Unpaired(a, x, seed=data.seed, name=named[0]), Unpaired(b, y, seed=data.seed, name=named[1])
    train, test = split_indices(len(data), held_out, seed, data.labels)
    return Subset(data, train, f"{data.name}/train"), Subset(data, test, f"{data.name}/held-out")
