"""Guidance: wraps denoisers and is a denoiser."""

from condiff.guidance.combine import Combine, Term, nested
from condiff.guidance.compose import Blend, Given, Switch, auto, product
from condiff.guidance.free import Free
from condiff.guidance.gradient import Classifier, Energy, gradient
from condiff.guidance.guided import Guided
from condiff.guidance.logits import ClassScore, tempered
from condiff.guidance.superpose import Superpose

__all__ = [
    "Blend",
    "ClassScore",
    "Classifier",
    "Combine",
    "Energy",
    "Free",
    "Given",
    "Guided",
    "Superpose",
    "Switch",
    "Term",
    "auto",
    "gradient",
    "nested",
    "product",
    "tempered",
]
