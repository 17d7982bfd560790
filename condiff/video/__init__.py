"""Video: drivers over frames."""

from condiff.video.cuts import histogram_distance, scene_cuts
from condiff.video.interpolate import Interpolator, between

__all__ = ["Interpolator", "between", "histogram_distance", "scene_cuts"]
