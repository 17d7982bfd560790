"""Laws: the mathematics of forward processes, with no network."""

from condiff.process.curves import VE, OffsetCosine, Sigmoid, SubVP
from condiff.process.gaussian import Gaussian, Process
from condiff.process.level import Level, Time, stack_levels
from condiff.process.noise import NoiseLaw, Normal
from condiff.process.prediction import KINDS, Prediction, mix
from condiff.process.prior import Moments, Prior
from condiff.process.schedule import EDM, Cosine, Rectified, Schedule, VPLinear
from condiff.process.table import Discrete
from condiff.process.tabulated import Tabulated

__all__ = [
    "EDM",
    "KINDS",
    "VE",
    "Cosine",
    "Discrete",
    "Gaussian",
    "Level",
    "Moments",
    "NoiseLaw",
    "Normal",
    "OffsetCosine",
    "Prediction",
    "Prior",
    "Process",
    "Rectified",
    "Schedule",
    "Sigmoid",
    "SubVP",
    "Tabulated",
    "Time",
    "VPLinear",
    "mix",
    "stack_levels",
]
