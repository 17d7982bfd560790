"""Training: objectives, averages of weights, and the loop that keeps its promises."""

from condiff.training.batch import Batch, as_batch
from condiff.training.choice import Choice, TargetChoice, choose_target
from condiff.training.config import TrainConfig
from condiff.training.coupling import Coupling, Independent, OptimalTransport
from condiff.training.ema import EMA, Average, Exponential, PowerFunction
from condiff.training.joint import JointDenoising
from condiff.training.multimodal import MultiModalDenoising
from condiff.training.objective import L1, L2, Denoising, Distance, Huber, Inner, Losses, Objective
from condiff.training.prefix import PrefixDenoising, PrefixLengths
from condiff.training.reconstruction import Reconstruction
from condiff.training.stable import StableTarget
from condiff.training.times import DiscreteTimes, EDMLogNormal, LogitNormal, PerFrame, Stratified, Times, UniformTimes
from condiff.training.tokens import TokenDenoising
from condiff.training.trainer import Status, Trainer, train
from condiff.training.variance import LearnedVariance
from condiff.training.weighting import (
    ELBO,
    P2,
    SNR,
    EDMWeight,
    InverseNoise,
    MinSNR,
    Sigmoid,
    TruncatedSNR,
    UniformWeight,
    Weighting,
)

__all__ = [
    "ELBO",
    "EMA",
    "L1",
    "L2",
    "P2",
    "SNR",
    "Average",
    "Batch",
    "Choice",
    "Coupling",
    "Denoising",
    "DiscreteTimes",
    "Distance",
    "EDMLogNormal",
    "EDMWeight",
    "Exponential",
    "Huber",
    "Independent",
    "Inner",
    "InverseNoise",
    "JointDenoising",
    "LearnedVariance",
    "LogitNormal",
    "Losses",
    "MinSNR",
    "MultiModalDenoising",
    "Objective",
    "OptimalTransport",
    "PerFrame",
    "PowerFunction",
    "PrefixDenoising",
    "PrefixLengths",
    "Reconstruction",
    "Sigmoid",
    "StableTarget",
    "Status",
    "Stratified",
    "TargetChoice",
    "Times",
    "TokenDenoising",
    "TrainConfig",
    "Trainer",
    "TruncatedSNR",
    "UniformTimes",
    "UniformWeight",
    "Weighting",
    "as_batch",
    "choose_target",
    "train",
]
