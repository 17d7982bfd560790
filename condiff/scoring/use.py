"""Does a model use its condition? Its error with the true one, with another sample's, and with none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions, cat
from condiff.errors import BadValue, Incompatible, unknown
from condiff.guidance.combine import FREE_KINDS
from condiff.random import as_source, derive_seed
from condiff.scoring.candidates import Noises, candidate_errors
from condiff.scoring.levels import level_indices
from condiff.scoring.measures import Error, Measure
from condiff.typing import Float


class ConditionUse(NamedTuple):
    """Mean errors over samples, the three of a sample on the same draws.

    true: with the sample's own condition.
    other: with another sample's.
    absent: with none, flagged absent.
    gain: mean of ``other - true`` over samples: what the condition tells. 0 for a model that doesn't listen.
    uncertainty: standard error of that mean.
    """

    true: float
    other: float
    absent: float
    gain: float
    uncertainty: float

    @property
    def used(self) -> bool:
        """Whether the gain is above 0 by three standard errors."""
        return self.gain > 3.0 * self.uncertainty


def condition_use(
    denoiser: Any,
    x: Float[Tensor, "batch *shape"],
    cond: Mapping[str, Any] | Conditions,
    *,
    names: Sequence[str] | None = None,
    draws: int = 20,
    measure: Measure | None = None,
    levels: int = 1000,
    seed: int = 0,
    batch: int = 256,
) -> ConditionUse:
    """Whether a model uses its conditions, by its errors on held-out samples: any kind of condition, any model.

    Args:
        x: samples, at least two, of different conditions.
        cond: their conditions.
        names: those that are asked about, all others stay; by default all but endpoints, observations and known parts.
        draws: noise levels, evenly spaced, each with a noise that a sample's three comparisons share.
        measure: by default the squared error of the noise.

    Raises:
        BadValue: one sample, unknown names, conditions that are the same for all samples.
        Incompatible: no condition to ask about.
    """
    told = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    chosen = [n for n, c in told.items() if c.kind not in FREE_KINDS] if names is None else list(names)
    for name in chosen:
        if name not in told:
            raise unknown("condition", name, told)
    if not chosen:
        raise Incompatible("there is no condition whose use could be asked about: name an endpoint by names=")
    other = _others(told, chosen, len(x), seed)
    swapped = told.replace(**{name: told.rows(other)[name] for name in chosen})
    triples = cat([told, swapped, told.drop(*chosen)])
    choice = torch.arange(len(x), device=x.device)[:, None] + len(x) * torch.arange(3, device=x.device)
    times = (torch.tensor(level_indices(levels, draws), dtype=torch.float64) + 1.0) / levels
    noise = Noises(denoiser.process, x.shape[1:], seed).rows(0, len(x) * draws, x.dtype, x.device)
    noise = noise.reshape(len(x), draws, *x.shape[1:])  # a sample's own: what is common to all would not average out
    measure = Error() if measure is None else measure
    errors = candidate_errors(denoiser, x, triples, times, noise, [measure], choice=choice, batch=batch)[0]
    per_sample = errors.double().mean(-1)
    gain = per_sample[:, 1] - per_sample[:, 0]
    own, others, none = per_sample.mean(0).tolist()
    return ConditionUse(own, others, none, float(gain.mean()), float(gain.std() / len(gain) ** 0.5))


def _others(told: Conditions, names: Sequence[str], count: int, seed: int) -> Tensor:
    """For each sample another one, all in one cycle of random order.

    Raises:
        BadValue: fewer than two samples, or conditions that are all the same.
    """
    if count < 2:
        raise BadValue(f"conditions are exchanged between samples: at least two are needed, got {count}")
    if all(bool((told[name].value == told[name].value[:1]).all()) for name in names):
        raise BadValue(f"all samples have the same {' and '.join(names)}: there is nothing to exchange")
    order = as_source(derive_seed(seed, "exchange")).uniform((count,)).argsort()
    other = torch.empty_like(order)
    other[order] = order.roll(-1)
    return other.to(next(iter(told.values())).value.device)
