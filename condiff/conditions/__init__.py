"""Conditions: what a model is told besides the state and the time."""

from condiff.conditions.bank import ConditionBank, Embedded
from condiff.conditions.condition import KINDS, Condition, Conditions, as_conditions, cat
from condiff.conditions.ends import SIDES, EitherEnd
from condiff.conditions.specs import Endpoint, Frames, Label, Map, Observation, Scalar, Spec, Tokens, Vector
from condiff.conditions.transforms import (
    Chain,
    Corrupt,
    CorruptionLaw,
    Dropout,
    FixedNoise,
    Perturb,
    TimeNoise,
    Transform,
)

__all__ = [
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
    "Label",
    "Map",
    "Observation",
    "Perturb",
    "Scalar",
    "Spec",
    "TimeNoise",
    "Tokens",
    "Transform",
    "Vector",
    "as_conditions",
    "cat",
]
