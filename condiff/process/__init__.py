"""Laws: the mathematics of forward processes, with no network."""

from condiff.process.curves import VE, OffsetCosine, Sigmoid, SubVP
from condiff.process.endpoint import Bridge, Endpoint, Interpolant, Ramps, Residual
from condiff.process.gaussian import Gaussian, Process
from condiff.process.level import Level, Time, stack_levels
from condiff.process.noise import NoiseLaw, Normal, StudentT
from condiff.process.prediction import KINDS, Prediction, mix
from condiff.process.prior import Moments, Prior
from condiff.process.schedule import EDM, Cosine, Rectified, Schedule, VPLinear
from condiff.process.table import Discrete
from condiff.process.tabulated import Tabulated

__all__ = [
    "EDM",
    "KINDS",
    "VE",
    "Bridge",
    "Cosine",
    "Discrete",
    "Endpoint",
    "Gaussian",
    "Interpolant",
    "Level",
    "Moments",
    "NoiseLaw",
    "Normal",
    "OffsetCosine",
    "Prediction",
    "Prior",
    "Process",
    "Ramps",
    "Rectified",
    "Residual",
    "Schedule",
    "Sigmoid",
    "StudentT",
    "SubVP",
    "Tabulated",
    "Time",
    "VPLinear",
    "mix",
    "stack_levels",
]
