"""Samplers: grids, solvers and the loop."""

from condiff.sampling.adaptive import Adaptive
from condiff.sampling.affine import GaussianLaw, affine_law, continuous_law
from condiff.sampling.corrector import PredictorCorrector
from condiff.sampling.grid import Grid, Power, Shifted, Uniform
from condiff.sampling.hooks import ClipResidual, ClipX0, Displace, DynamicThreshold, MeanShift, Record, X0Replace
from condiff.sampling.inpaint import Inpaint, repaint_grid
from condiff.sampling.inversion import Inversion, invert
from condiff.sampling.joint import JointSolver
from condiff.sampling.likelihood import Likelihood, log_likelihood
from condiff.sampling.loop import Hook, Run, Step, sample, trajectory
from condiff.sampling.sigmas import BetaSigmas, Karras, UniformLogSNR
from condiff.sampling.solver import Entry, Solver, State
from condiff.sampling.solvers.adams import AdamsBashforth
from condiff.sampling.solvers.ddim import DDIM, Consistency
from condiff.sampling.solvers.ddpm import DDPM
from condiff.sampling.solvers.dpm import DPMSolver, DPMSolverPP
from condiff.sampling.solvers.euler import Euler
from condiff.sampling.solvers.heun import Heun
from condiff.sampling.solvers.renoise import Renoise
from condiff.sampling.solvers.runge_kutta import RungeKutta
from condiff.sampling.solvers.sde import SDE
from condiff.sampling.solvers.token_filter import TokenFilter
from condiff.sampling.solvers.tokens import RelaxedAncestral, TauLeaping, TokenAncestral, Unmask, infill
from condiff.sampling.solvers.unipc import UniPC
from condiff.sampling.spacing import Spaced, Strided, resolution_shift
from condiff.sampling.steering import Nudge, SineBoost, SineShare

__all__ = [
    "DDIM",
    "DDPM",
    "SDE",
    "AdamsBashforth",
    "Adaptive",
    "BetaSigmas",
    "ClipResidual",
    "ClipX0",
    "Consistency",
    "DPMSolver",
    "DPMSolverPP",
    "Displace",
    "DynamicThreshold",
    "Entry",
    "Euler",
    "GaussianLaw",
    "Grid",
    "Heun",
    "Hook",
    "Inpaint",
    "Inversion",
    "JointSolver",
    "Karras",
    "Likelihood",
    "MeanShift",
    "Nudge",
    "Power",
    "PredictorCorrector",
    "Record",
    "RelaxedAncestral",
    "Renoise",
    "Run",
    "RungeKutta",
    "Shifted",
    "SineBoost",
    "SineShare",
    "Solver",
    "Spaced",
    "State",
    "Step",
    "Strided",
    "TauLeaping",
    "TokenAncestral",
    "TokenFilter",
    "UniPC",
    "Uniform",
    "UniformLogSNR",
    "Unmask",
    "X0Replace",
    "affine_law",
    "continuous_law",
    "infill",
    "invert",
    "log_likelihood",
    "repaint_grid",
    "resolution_shift",
    "sample",
    "trajectory",
]
