"""Samplers: grids, solvers and the loop."""

from condiff.sampling.adaptive import Adaptive
from condiff.sampling.corrector import PredictorCorrector
from condiff.sampling.grid import Grid, Uniform
from condiff.sampling.hooks import ClipX0, Displace, DynamicThreshold, MeanShift, Record, X0Replace
from condiff.sampling.inpaint import Inpaint, repaint_grid
from condiff.sampling.inversion import Inversion, invert
from condiff.sampling.likelihood import Likelihood, log_likelihood
from condiff.sampling.loop import Hook, Run, Step, sample, trajectory
from condiff.sampling.solver import Entry, Solver, State
from condiff.sampling.solvers.ddim import DDIM
from condiff.sampling.solvers.euler import Euler

__all__ = [
    "DDIM",
    "Adaptive",
    "ClipX0",
    "Displace",
    "DynamicThreshold",
    "Entry",
    "Euler",
    "Grid",
    "Hook",
    "Inpaint",
    "Inversion",
    "Likelihood",
    "MeanShift",
    "PredictorCorrector",
    "Record",
    "Run",
    "Solver",
    "State",
    "Step",
    "Uniform",
    "X0Replace",
    "invert",
    "log_likelihood",
    "repaint_grid",
    "sample",
    "trajectory",
]
