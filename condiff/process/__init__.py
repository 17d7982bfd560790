"""Laws: the mathematics of forward processes, with no network."""

from condiff.process.categorical import Absorbing, MaskAndUniform, TokenProcess, UniformTokens
from condiff.process.curves import VE, ClippedCosine, OffsetCosine, Sigmoid, SubVP
from condiff.process.driven import Driven
from condiff.process.endpoint import Bridge, Endpoint, Interpolant, Residual
from condiff.process.gaussian import Gaussian, Process
from condiff.process.joint import Joint, JointPrior
from condiff.process.keep import CosineKeep, Geometric, Keep, LinearKeep, LogLinear, RatioKeep
from condiff.process.kinetic import (
    KineticReport,
    Separation,
    kinetic_energy,
    kinetic_optimal,
    kinetic_report,
    straight_sigmas,
)
from condiff.process.level import Level, Time, stack_levels
from condiff.process.noise import NoiseLaw, Normal, StudentT
from condiff.process.prediction import KINDS, Prediction, mix
from condiff.process.principal_law import PrincipalLaw
from condiff.process.prior import EndpointLaw, Given, Moments, Prior, ProgressiveNoise
from condiff.process.ramps import Clocks, Ramps
from condiff.process.retime import Retimed
from condiff.process.schedule import EDM, Cosine, Rectified, Schedule, VPLinear
from condiff.process.separation import (
    from_mse_curve,
    model_separation,
    points_separation,
    population_separation,
)
from condiff.process.table import Discrete
from condiff.process.tabulated import Tabulated
from condiff.process.teleport import Marginal, Teleport
from condiff.process.token_level import TokenLevel, TokenPrior, TokenTime
from condiff.process.token_prediction import TokenPrediction, mix_tokens

__all__ = [
    "EDM",
    "KINDS",
    "VE",
    "Absorbing",
    "Bridge",
    "ClippedCosine",
    "Clocks",
    "Cosine",
    "CosineKeep",
    "Discrete",
    "Driven",
    "Endpoint",
    "EndpointLaw",
    "Gaussian",
    "Geometric",
    "Given",
    "Interpolant",
    "Joint",
    "JointPrior",
    "Keep",
    "KineticReport",
    "Level",
    "LinearKeep",
    "LogLinear",
    "Marginal",
    "MaskAndUniform",
    "Moments",
    "NoiseLaw",
    "Normal",
    "OffsetCosine",
    "Prediction",
    "PrincipalLaw",
    "Prior",
    "Process",
    "ProgressiveNoise",
    "Ramps",
    "RatioKeep",
    "Rectified",
    "Residual",
    "Retimed",
    "Schedule",
    "Separation",
    "Sigmoid",
    "StudentT",
    "SubVP",
    "Tabulated",
    "Teleport",
    "Time",
    "TokenLevel",
    "TokenPrediction",
    "TokenPrior",
    "TokenProcess",
    "TokenTime",
    "UniformTokens",
    "VPLinear",
    "from_mse_curve",
    "kinetic_energy",
    "kinetic_optimal",
    "kinetic_report",
    "mix",
    "mix_tokens",
    "model_separation",
    "points_separation",
    "population_separation",
    "stack_levels",
    "straight_sigmas",
]
