"""Conditions: what a model is told besides the state and the time."""

from condiff.conditions.condition import KINDS, Condition, Conditions, as_conditions, cat

__all__ = ["KINDS", "Condition", "Conditions", "as_conditions", "cat"]
