"""Deterministic splits into a training and a held-out part."""

from __future__ import annotations

from condiff.data.base import Data
from condiff.data.held_out import SHARE


def split(data: Data, held_out: float = SHARE, seed: int = 0) -> tuple[Data, Data]:
    """``(training, held out)`` parts of a data set: a share, at least one sample, disjoint and always the same.

    Whole recordings of several; the end of one recording, of a text and of each series; else rows at random, of each
    class in proportion to its size. Of both of two unpaired sets.

    Raises:
        BadValue: a share outside (0, 1), too few samples for two parts.
    """
    return data.cut(held_out, seed)
