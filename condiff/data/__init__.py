"""Data sets: in memory, in folders, in files, from a hub; with splits, seeded augmentations and statistics."""

from condiff.data.base import Data, Refused, Subset, TensorData
from condiff.data.digits import digits
from condiff.data.split import split, split_indices

__all__ = ["Data", "Refused", "Subset", "TensorData", "digits", "split", "split_indices"]
