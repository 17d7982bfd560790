"""Data sets: in memory, in folders, in files, from a hub; with splits, seeded augmentations and statistics."""

from condiff.data.base import Data, Refused, Subset, TensorData
from condiff.data.camera import camera
from condiff.data.clips import Clips, clips, video
from condiff.data.digits import digits
from condiff.data.folders import find_pictures, images, pairs
from condiff.data.frames import Triplets, triplets
from condiff.data.halves import halves
from condiff.data.held_out import SHARE, held_count, split_indices
from condiff.data.hourly import hourly
from condiff.data.latents import Encoded, encode_conditions, latents
from condiff.data.loader import loader, shuffled
from condiff.data.missing import PATTERNS, missing
from condiff.data.moments import DataMoments
from condiff.data.moving_digits import Bouncing, bouncing_ball, moving_digits
from condiff.data.nifti import Volume, read_volume, write_volume
from condiff.data.open import SOURCES, files_of, open_data, options
from condiff.data.phantoms import phantom, phantoms, write_phantoms
from condiff.data.picture import Framing
from condiff.data.pictures import Item, Pictures, read_picture
from condiff.data.principal import class_laws, principal_law
from condiff.data.prompts import Prompts, read_prompts
from condiff.data.ranges import Affine, to_model_range
from condiff.data.recalled import Recalled, RecalledVolumes, remember
from condiff.data.sequence import read_frames
from condiff.data.series import Series, entries, frequency, read_series
from condiff.data.split import split
from condiff.data.statistics import Statistics, statistics
from condiff.data.tables import arrays, hub, parquet
from condiff.data.text import TokenData, text
from condiff.data.tiles import Tiles
from condiff.data.together import RecalledTogether, Together, of_together
from condiff.data.tokenizer import Characters, Subwords, Tokenizer, make_tokenizer, read_tokenizer
from condiff.data.unpaired import Unpaired, unpaired
from condiff.data.variables import AsVariables
from condiff.data.volumes import Place, Scan, Volumes, find_scans, modality_of, of_volumes, volumes
from condiff.data.windows import Window, Windows, WindowSpec, season_of, series

__all__ = [
    "PATTERNS",
    "SHARE",
    "SOURCES",
    "Affine",
    "AsVariables",
    "Bouncing",
    "Characters",
    "Clips",
    "Data",
    "DataMoments",
    "Encoded",
    "Framing",
    "Item",
    "Pictures",
    "Place",
    "Prompts",
    "Recalled",
    "RecalledTogether",
    "RecalledVolumes",
    "Refused",
    "Scan",
    "Series",
    "Statistics",
    "Subset",
    "Subwords",
    "TensorData",
    "Tiles",
    "Together",
    "TokenData",
    "Tokenizer",
    "Triplets",
    "Unpaired",
    "Volume",
    "Volumes",
    "Window",
    "WindowSpec",
    "Windows",
    "arrays",
    "bouncing_ball",
    "camera",
    "class_laws",
    "clips",
    "digits",
    "encode_conditions",
    "entries",
    "files_of",
    "find_pictures",
    "find_scans",
    "frequency",
    "halves",
    "held_count",
    "hourly",
    "hub",
    "images",
    "latents",
    "loader",
    "make_tokenizer",
    "missing",
    "modality_of",
    "moving_digits",
    "of_together",
    "of_volumes",
    "open_data",
    "options",
    "pairs",
    "parquet",
    "phantom",
    "phantoms",
    "principal_law",
    "read_frames",
    "read_picture",
    "read_prompts",
    "read_series",
    "read_tokenizer",
    "read_volume",
    "remember",
    "season_of",
    "series",
    "shuffled",
    "split",
    "split_indices",
    "statistics",
    "text",
    "to_model_range",
    "triplets",
    "unpaired",
    "video",
    "volumes",
    "write_phantoms",
    "write_volume",
]
