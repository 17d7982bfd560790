"""Guidance: wraps denoisers and is a denoiser."""

from condiff.guidance.anchored import ANCHOR, Anchored, residual_noise
from condiff.guidance.combine import Combine, Term, nested
from condiff.guidance.compose import Blend, Given, Switch, auto, product
from condiff.guidance.distilled import Distilled
from condiff.guidance.free import Free
from condiff.guidance.gradient import Classifier, Energy, gradient
from condiff.guidance.guided import Guided
from condiff.guidance.logits import ClassScore, tempered
from condiff.guidance.observed import Observed, Quantile, SquaredError, quantile_levels
from condiff.guidance.proximal import Proximal
from condiff.guidance.superpose import Superpose

__all__ = [
    "ANCHOR",
    "Anchored",
    "Blend",
    "ClassScore",
    "Classifier",
    "Combine",
    "Distilled",
    "Energy",
    "Free",
    "Given",
    "Guided",
    "Observed",
    "Proximal",
    "Quantile",
    "SquaredError",
    "Superpose",
    "Switch",
    "Term",
    "auto",
    "gradient",
    "nested",
    "product",
    "quantile_levels",
    "residual_noise",
    "tempered",
]
