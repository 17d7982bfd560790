"""Data sets: in memory, in folders, in files, from a hub; with splits, seeded augmentations and statistics."""

from condiff.data.base import Data, Refused, Subset, TensorData
from condiff.data.clips import Clips, clips
from condiff.data.digits import digits
from condiff.data.folders import find_pictures, images, pairs
from condiff.data.frames import Triplets, triplets
from condiff.data.latents import latents
from condiff.data.loader import loader, shuffled
from condiff.data.moments import DataMoments
from condiff.data.open import SOURCES, open_data, options
from condiff.data.picture import Framing
from condiff.data.pictures import Item, Pictures, read_picture
from condiff.data.principal import class_laws, principal_law
from condiff.data.prompts import Prompts, read_prompts
from condiff.data.ranges import Affine, to_model_range
from condiff.data.sequence import read_frames
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
    "Prompts",
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
    "hub",
    "images",
    "latents",
    "loader",
    "open_data",
    "options",
    "pairs",
    "parquet",
    "principal_law",
    "read_frames",
    "read_picture",
    "read_prompts",
    "shuffled",
    "split",
    "split_indices",
    "statistics",
    "to_model_range",
    "triplets",
    "unpaired",
]
