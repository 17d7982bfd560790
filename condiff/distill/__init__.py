"""Distillation: trainings in stages, each with the frozen result of the one before as its teacher."""

from condiff.distill.chain import Chain, mark_finished, stage_folder
from condiff.distill.encoding import Encoding, encode, encoding_stages
from condiff.distill.grid import DistilledGrid
from condiff.distill.stage import Stage, extended, guided_stage, halving_stages
from condiff.distill.teaching import GuidedDistillation, Halving, Taught, fraction, frozen, two_steps

__all__ = [
    "Chain",
    "DistilledGrid",
    "Encoding",
    "GuidedDistillation",
    "Halving",
    "Stage",
    "Taught",
    "encode",
    "encoding_stages",
    "extended",
    "fraction",
    "frozen",
    "guided_stage",
    "halving_stages",
    "mark_finished",
    "stage_folder",
    "two_steps",
]
