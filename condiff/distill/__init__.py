"""Distillation: trainings in stages, each with the frozen result of the one before as its teacher."""
