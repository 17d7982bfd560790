"""Samplers: grids, solvers and the loop."""

from condiff.sampling.grid import Grid, Uniform
from condiff.sampling.loop import Hook, Run, Step, sample, trajectory
from condiff.sampling.solver import Entry, Solver, State
from condiff.sampling.solvers.ddim import DDIM
from condiff.sampling.solvers.euler import Euler

__all__ = ["DDIM", "Entry", "Euler", "Grid", "Hook", "Run", "Solver", "State", "Step", "Uniform", "sample", "trajectory"]
