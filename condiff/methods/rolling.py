"""Rolling: how a recipe that learnt to continue clips is sampled."""

from __future__ import annotations

from typing import Any

from condiff.denoiser import Denoises
from condiff.methods.recipe import Recipe, Sampler
from condiff.training import PrefixDenoising
from condiff.video import Rollout


def rollout(
    denoiser: Denoises, recipe: Recipe, sampler: Sampler | None = None, *, context: str = "cached", **changes: Any
) -> Rollout:
    """The rollout of a recipe's objective: chunks behind at most the longest prefix that was learnt with a whole one.

    Args:
        denoiser: a trained one, or guided.
        sampler: instead of the recipe's.
        changes: other arguments of :class:`condiff.video.Rollout`.
    """
    objective, sampler = recipe.objective, sampler or recipe.sampler
    assert isinstance(objective, PrefixDenoising)
    lengths = objective.lengths
    whole = [given for given in lengths.choices if given + lengths.chunk <= lengths.frames]
    how: dict[str, Any] = {
        "chunk": lengths.chunk,
        "max_context": max(whole, default=lengths.given),
        "solver": sampler.solver,
        "grid": sampler.grid,
        "steps": sampler.steps,
        "hooks": sampler.hooks,
        "prior": sampler.prior,
        "perturb": objective.perturb,
        "clean": objective.clean,
    }
    return Rollout(denoiser, context=context, **{**how, **changes})
