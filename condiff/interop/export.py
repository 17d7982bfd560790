"""From condiff to diffusers: solvers as schedulers of pipelines, guidance as guiders of modular ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from condiff.denoiser import Denoises
from condiff.interop.schedulers import is_continuous, is_flow, process_of
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
    scheduler = scheduler_of(like)
    module = importlib.import_module("condiff.interop.solver_scheduler")  # it needs diffusers
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    return module.SolverScheduler(solver, {**config, "_class_name": type(scheduler).__name__}, grid)


def as_guider(guidance: Callable[[Denoises], Denoises], like: Any) -> Any:
    """Guidance as a guider of diffusers' modular pipelines.

    The guidance is given as a function of the model: ``as_guider(lambda model: Free(model, scale=5.0,
    interval=(0.2, 0.8)), pipe)``. What it evaluates, with the conditions and without, is what the pipeline then
    evaluates; where it needs one of them only, so does the pipeline. Strengths may be functions of the level.

    Args:
        guidance: any wrapper, or several, that combine the conditional and the unconditional prediction: Free,
            Combine, or one's own. The state isn't known to guiders, so that gradients and the like can't be.
        like: the pipeline, or its scheduler: it says what the network predicts, and on which process.

    Raises:
        BadType: neither a scheduler nor what has one.
        Incompatible: guidance that needs the state or more than the two predictions, when it is called.
    """
    module = importlib.import_module("condiff.interop.guider")  # it needs diffusers
    return module.Guider(guidance, scheduler_of(like))


def scheduler_of(like: Any) -> Any:
    """The scheduler of a pipeline, or itself; the one that a solver stands in for.

    Raises:
        BadType: none. Incompatible: one of another family.
    """
    scheduler = like if hasattr(like, "set_timesteps") else getattr(like, "scheduler", like)
    scheduler = getattr(scheduler, "like", scheduler)
    process_of(scheduler)
    return scheduler


def time_of(scheduler: Any, timestep: Tensor) -> Tensor:
    """The times, float64, of what a scheduler calls its timesteps."""
    timestep = timestep.to(torch.float64)
    if is_flow(scheduler):
        return timestep / scheduler.config["num_train_timesteps"]
    process, _ = process_of(scheduler)
    if is_continuous(scheduler):
        return process.time(-8.0 * timestep)
    return process.schedule.at_index(timestep)  # type: ignore[union-attr]
