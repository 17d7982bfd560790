"""Samplers: grids, solvers and the loop."""

from condiff.sampling.adaptive import Adaptive
from condiff.sampling.affine import GaussianLaw, affine_law, continuous_law
from condiff.sampling.analysis import Propagation, TrajectoryAnalysis, analyse, propagate
from condiff.sampling.anchors import KeepPath, TowardsReference
from condiff.sampling.attention_edit import AttentionEdit, LocalBlend, beside
from condiff.sampling.boundary import Boundary
from condiff.sampling.corrector import PredictorCorrector
from condiff.sampling.density import ItoDensity, ito_likelihood
from condiff.sampling.energy import KineticEnergy
from condiff.sampling.grid import Grid, Power, Shifted, Uniform
from condiff.sampling.hooks import (
    ClipDecoded,
    ClipResidual,
    ClipX0,
    Displace,
    DynamicThreshold,
    MeanShift,
    Record,
    X0Replace,
)
from condiff.sampling.inpaint import Inpaint, repaint_grid
from condiff.sampling.inversion import Inversion, invert
from condiff.sampling.joint import JointSolver
from condiff.sampling.late import Likeness, Tail, likeness, start_index, teleport
from condiff.sampling.likelihood import Likelihood, log_likelihood
from condiff.sampling.loop import Hook, Run, Step, sample, trajectory
from condiff.sampling.measure_statistics import measure_statistics
from condiff.sampling.model_statistics import ModelStatistics, guidance_of
from condiff.sampling.multimodal import Aggregated, multimodal_in, sample_modalities
from condiff.sampling.per_variable import ForVariables
from condiff.sampling.refine import Descent, Langevin, denoising_energy, refine, typical_time
from condiff.sampling.sde_likelihood import sde_log_likelihood
from condiff.sampling.segments import Segments
from condiff.sampling.sigmas import BetaSigmas, Karras, UniformLogSNR
from condiff.sampling.solver import Entry, Solver, State
from condiff.sampling.solvers.adams import AdamsBashforth
from condiff.sampling.solvers.ddim import DDIM, Consistency, Overshoot
from condiff.sampling.solvers.ddpm import DDPM
from condiff.sampling.solvers.dpm import DPMSolver, DPMSolverPP
from condiff.sampling.solvers.dpm_v3 import DPMSolverV3
from condiff.sampling.solvers.euler import Euler
from condiff.sampling.solvers.heun import Heun
from condiff.sampling.solvers.implicit import ImplicitDDIM
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
    "Aggregated",
    "AttentionEdit",
    "BetaSigmas",
    "Boundary",
    "ClipDecoded",
    "ClipResidual",
    "ClipX0",
    "Consistency",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverV3",
    "Descent",
    "Displace",
    "DynamicThreshold",
    "Entry",
    "Euler",
    "ForVariables",
    "GaussianLaw",
    "Grid",
    "Heun",
    "Hook",
    "ImplicitDDIM",
    "Inpaint",
    "Inversion",
    "ItoDensity",
    "JointSolver",
    "Karras",
    "KeepPath",
    "KineticEnergy",
    "Langevin",
    "Likelihood",
    "Likeness",
    "LocalBlend",
    "MeanShift",
    "ModelStatistics",
    "Nudge",
    "Overshoot",
    "Power",
    "PredictorCorrector",
    "Propagation",
    "Record",
    "RelaxedAncestral",
    "Renoise",
    "Run",
    "RungeKutta",
    "Segments",
    "Shifted",
    "SineBoost",
    "SineShare",
    "Solver",
    "Spaced",
    "State",
    "Step",
    "Strided",
    "Tail",
    "TauLeaping",
    "TokenAncestral",
    "TokenFilter",
    "TowardsReference",
    "TrajectoryAnalysis",
    "UniPC",
    "Uniform",
    "UniformLogSNR",
    "Unmask",
    "X0Replace",
    "affine_law",
    "analyse",
    "beside",
    "continuous_law",
    "denoising_energy",
    "guidance_of",
    "infill",
    "invert",
    "ito_likelihood",
    "likeness",
    "log_likelihood",
    "measure_statistics",
    "multimodal_in",
    "propagate",
    "refine",
    "repaint_grid",
    "resolution_shift",
    "sample",
    "sample_modalities",
    "sde_log_likelihood",
    "start_index",
    "teleport",
    "trajectory",
    "typical_time",
]
