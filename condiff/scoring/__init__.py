"""Scoring: what a trained model says about given samples: conditions compared on shared noise."""

from condiff.scoring.candidates import Noises, candidate_errors
from condiff.scoring.classifier import DiffusionClassifier, Scores
from condiff.scoring.levels import level_indices, stage_indices
from condiff.scoring.measures import Bound, Error, Measure, Total
from condiff.scoring.use import ConditionUse, condition_use

__all__ = [
    "Bound",
    "ConditionUse",
    "DiffusionClassifier",
    "Error",
    "Measure",
    "Noises",
    "Scores",
    "Total",
    "candidate_errors",
    "condition_use",
    "level_indices",
    "stage_indices",
]
