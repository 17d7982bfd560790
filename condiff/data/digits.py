"""The handwritten digits that scikit-learn bundles: 1797 real 8x8 images, no download."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from condiff.data.base import TensorData
from condiff.data.held_out import split_indices
from condiff.errors import require_extra, unknown

SPLITS = ("train", "test", "all")


@cache
def _bundled() -> tuple[Tensor, Tensor]:
    bunch = require_extra("sklearn.datasets", "data").load_digits()
    return torch.from_numpy(bunch.images).float()[:, None], torch.from_numpy(bunch.target).long()


def digits(split: str = "train", seed: int = 0) -> TensorData:
    """Handwritten digits (Alpaydin & Kaynak 1998), (1, 8, 8) in [-1, 1], with the condition ``label``.

    Args:
        split: ``"train"`` (1438), ``"test"`` (359, held out, stratified by class) or ``"all"`` (1797).
        seed: which split; published numbers use 0.

    Example:
        >>> data = digits()
        >>> data.batch([0, 1])["x"].shape
        torch.Size([2, 1, 8, 8])
    """
    if split not in SPLITS:
        raise unknown("split of the digits", split, SPLITS)
    x, y = _bundled()
    if split != "all":
        train, test = split_indices(len(x), 0.2, seed, y)
        rows = train if split == "train" else test
        x, y = x[rows], y[rows]
    return TensorData(x, {"label": y}, classes=[str(i) for i in range(10)], range=(0.0, 16.0), name=f"digits/{split}")
