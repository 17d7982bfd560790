"""From condiff to diffusers: solvers as schedulers of pipelines."""

from __future__ import annotations

import importlib
from typing import Any

from condiff.interop.schedulers import process_of
from condiff.sampling import Grid, Solver


def as_scheduler(solver: Solver, like: Any, grid: Grid | None = None) -> Any:
    """A solver as a scheduler of diffusers: ``pipe.scheduler = as_scheduler(UniPC(), pipe)``.

    Rules with several evaluations a step serve as well; the pipeline then shows an iteration for each. The state is
    that of the process (for tables of betas the variance-preserving one), whatever the scheduler's own was.

    Args:
        solver: the update rule, :class:`condiff.sampling.DPMSolverV3` with statistics of the model among them.
        like: the pipeline, or the scheduler that it has: it says what the network predicts, and at which times.
        grid: times of the steps, instead of those that the scheduler visits.

    Raises:
        BadType: not a solver, not a scheduler.
        Incompatible: a scheduler of another family, an adaptive solver.
    """
    scheduler = like if hasattr(like, "set_timesteps") else getattr(like, "scheduler", like)
    scheduler = getattr(scheduler, "like", scheduler)  # of a solver that stands in already
    process_of(scheduler)  # refuses what is none
    module = importlib.import_module("condiff.interop.solver_scheduler")  # it needs diffusers
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    return module.SolverScheduler(solver, {**config, "_class_name": type(scheduler).__name__}, grid)
