"""Laws: the mathematics of forward processes, with no network."""

from condiff.process.gaussian import Gaussian, Process
from condiff.process.level import Level, Time, stack_levels
from condiff.process.noise import NoiseLaw, Normal
from condiff.process.prediction import KINDS, Prediction, mix
from condiff.process.prior import Moments, Prior
from condiff.process.schedule import EDM, Cosine, Rectified, Schedule, VPLinear

__all__ = [
    "EDM",
    "KINDS",
    "Cosine",
    "Gaussian",
    "Level",
    "Moments",
    "NoiseLaw",
    "Normal",
    "Prediction",
    "Prior",
    "Process",
    "Rectified",
    "Schedule",
    "Time",
    "VPLinear",
    "mix",
    "stack_levels",
]
