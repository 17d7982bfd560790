"""Video: drivers over frames."""

from condiff.video.cuts import histogram_distance, scene_cuts
from condiff.video.files import interpolate_files, write_frames
from condiff.video.interpolate import Interpolator, between

__all__ = ["Interpolator", "between", "histogram_distance", "interpolate_files", "scene_cuts", "write_frames"]
