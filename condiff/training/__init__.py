"""Training: objectives, averages of weights, and the loop that keeps its promises."""

from condiff.training.batch import Batch, as_batch
from condiff.training.objective import L1, L2, Denoising, Distance, Huber, Losses, Objective
from condiff.training.times import Discrete, EDMLogNormal, LogitNormal, PerFrame, Stratified, Times, UniformTimes
from condiff.training.weighting import (
    ELBO,
    P2,
    SNR,
    EDMWeight,
    MinSNR,
    Sigmoid,
    TruncatedSNR,
    UniformWeight,
    Weighting,
)

__all__ = [
    "ELBO",
    "L1",
    "L2",
    "P2",
    "SNR",
    "Batch",
    "Denoising",
    "Discrete",
    "Distance",
    "EDMLogNormal",
    "EDMWeight",
    "Huber",
    "LogitNormal",
    "Losses",
    "MinSNR",
    "Objective",
    "PerFrame",
    "Sigmoid",
    "Stratified",
    "Times",
    "TruncatedSNR",
    "UniformTimes",
    "UniformWeight",
    "Weighting",
    "as_batch",
]
