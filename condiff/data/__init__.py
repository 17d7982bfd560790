"""Data sets: in memory, in folders, in files, from a hub; with splits, seeded augmentations and statistics."""

from condiff.data.base import Data, Refused, Subset, TensorData
from condiff.data.clips import Clips, clips
from condiff.data.digits import digits
from condiff.data.folders import find_pictures, images, pairs
from condiff.data.frames import Triplets, read_frames, triplets
from condiff.data.loader import loader, shuffled
from condiff.data.moments import DataMoments
from condiff.data.open import SOURCES, open_data, options
from condiff.data.picture import Framing
from condiff.data.pictures import Item, Pictures, read_picture
from condiff.data.principal import class_laws, gaussian_law
from condiff.data.ranges import Affine, to_model_range
from condiff.data.split import split, split_indices
from condiff.data.statistics import Statistics, statistics
from condiff.data.tables import arrays, hub, parquet
from condiff.data.tiles import Tiles
from condiff.data.unpaired import Unpaired, unpaired

__all__ = [
    "SOURCES",
    "Affine",
    "Clips",
    "Data",
    "DataMoments",
    "Framing",
    "Item",
    "Pictures",
    "Refused",
    "Statistics",
    "Subset",
    "TensorData",
    "Tiles",
    "Triplets",
    "Unpaired",
    "arrays",
    "class_laws",
    "clips",
    "digits",
    "find_pictures",
    "gaussian_law",
    "hub",
    "images",
    "loader",
    "open_data",
    "options",
    "pairs",
    "parquet",
    "read_frames",
    "read_picture",
    "shuffled",
    "split",
    "split_indices",
    "statistics",
    "to_model_range",
    "triplets",
    "unpaired",
]
