"""Video: drivers over frames."""

from condiff.video.contexts import AsCondition, Cached, Context, Recomputed
from condiff.video.cuts import histogram_distance, scene_cuts
from condiff.video.files import interpolate_files, write_frames
from condiff.video.interpolate import Interpolator, between
from condiff.video.rollout import Rollout

__all__ = [
    "AsCondition",
    "Cached",
    "Context",
    "Interpolator",
    "Recomputed",
    "Rollout",
    "between",
    "histogram_distance",
    "interpolate_files",
    "scene_cuts",
    "write_frames",
]
