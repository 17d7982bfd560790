"""Metrics: float64, explicit randomness, in blocks that fit into memory, on the device of their arguments.

Distances between distributions are our own short code rather than torchmetrics': its Fréchet and kernel distances need
torch-fidelity and through it torchvision, it accumulates in float32, and none of it covers density, coverage,
energy or memorisation. The tests hold PSNR, SSIM and CRPS equal to torchmetrics where it has them.
"""

from condiff.metrics.calibration import Calibration, calibration, confusion, mean_class_accuracy, text_score
from condiff.metrics.control import FieldLosses, best_noise, field_losses, kl_bound
from condiff.metrics.digit_classifier import DigitClassifier, digit_classifier
from condiff.metrics.discrepancy import (
    RBF,
    Kernel,
    Polynomial,
    energy_distance,
    kernel_distance,
    mmd2,
    sliced_wasserstein,
    wasserstein_1d,
)
from condiff.metrics.evaluate import class_accuracy, evaluate
from condiff.metrics.features import Classifies, Features, ImageFeatures, Pixels, inception
from condiff.metrics.forecast import (
    DECILES,
    crps,
    crps_quantiles,
    normalised_deviation,
    normalised_rmse,
    pinball,
    sample_quantiles,
    weighted_quantile_loss,
)
from condiff.metrics.frechet import frechet, frechet_gaussian
from condiff.metrics.images import psnr, ssim
from condiff.metrics.likelihood import (
    Elbo,
    JointElbo,
    bits_per_dim,
    denoising_log_prob,
    elbo,
    joint_elbo,
    nats_per_sample,
)
from condiff.metrics.motion import Leakage, leakage, motion
from condiff.metrics.neighbours import Manifold, Memorisation, memorisation, nearest_rows, precision_recall
from condiff.metrics.predictive import linear_predictive_score, ridge
from condiff.metrics.token_likelihood import OrderBound, order_bound

__all__ = [
    "DECILES",
    "RBF",
    "Calibration",
    "Classifies",
    "DigitClassifier",
    "Elbo",
    "Features",
    "FieldLosses",
    "ImageFeatures",
    "JointElbo",
    "Kernel",
    "Leakage",
    "Manifold",
    "Memorisation",
    "OrderBound",
    "Pixels",
    "Polynomial",
    "best_noise",
    "bits_per_dim",
    "calibration",
    "class_accuracy",
    "confusion",
    "crps",
    "crps_quantiles",
    "denoising_log_prob",
    "digit_classifier",
    "elbo",
    "energy_distance",
    "evaluate",
    "field_losses",
    "frechet",
    "frechet_gaussian",
    "inception",
    "joint_elbo",
    "kernel_distance",
    "kl_bound",
    "leakage",
    "linear_predictive_score",
    "mean_class_accuracy",
    "memorisation",
    "mmd2",
    "motion",
    "nats_per_sample",
    "nearest_rows",
    "normalised_deviation",
    "normalised_rmse",
    "order_bound",
    "pinball",
    "precision_recall",
    "psnr",
    "ridge",
    "sample_quantiles",
    "sliced_wasserstein",
    "ssim",
    "text_score",
    "wasserstein_1d",
    "weighted_quantile_loss",
]
