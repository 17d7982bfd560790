"""Conditions: what a model is told besides the state and the time."""

from condiff.conditions.bank import ConditionBank, Embedded
from condiff.conditions.condition import BELONGING, KINDS, Condition, Conditions, as_conditions, cat
from condiff.conditions.ends import SIDES, EitherEnd
from condiff.conditions.guidance_scale import GUIDANCE, GuidanceScale, RandomScale, scale_features
from condiff.conditions.specs import Endpoint, Frames, Label, Map, Observation, Scalar, Spec, Tokens, Vector
from condiff.conditions.transforms import (
    Chain,
    Corrupt,
    CorruptionLaw,
    Dropout,
    FixedNoise,
    Perturb,
    TiedDropout,
    TimeNoise,
    Transform,
)

__all__ = [
    "BELONGING",
    "GUIDANCE",
    "KINDS",
    "SIDES",
    "Chain",
    "Condition",
    "ConditionBank",
    "Conditions",
    "Corrupt",
    "CorruptionLaw",
    "Dropout",
    "EitherEnd",
    "Embedded",
    "Endpoint",
    "FixedNoise",
    "Frames",
    "GuidanceScale",
    "Label",
    "Map",
    "Observation",
    "Perturb",
    "RandomScale",
    "Scalar",
    "Spec",
    "TiedDropout",
    "TimeNoise",
    "Tokens",
    "Transform",
    "Vector",
    "as_conditions",
    "cat",
    "scale_features",
]
