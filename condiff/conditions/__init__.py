"""Conditions: what a model is told besides the state and the time."""

from condiff.conditions.condition import KINDS, Condition, Conditions, as_conditions, cat
from condiff.conditions.embed import (
    ConditionBank,
    Embedded,
    Endpoint,
    Frames,
    Label,
    Map,
    Observation,
    Scalar,
    Spec,
    Tokens,
    Vector,
)

__all__ = [
    "KINDS",
    "Condition",
    "ConditionBank",
    "Conditions",
    "Embedded",
    "Endpoint",
    "Frames",
    "Label",
    "Map",
    "Observation",
    "Scalar",
    "Spec",
    "Tokens",
    "Vector",
    "as_conditions",
    "cat",
]
