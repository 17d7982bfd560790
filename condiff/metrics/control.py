"""How far a stochastic sampler can be from its target, by the losses of its fields; and the noise level it wants.

With ``eps`` the noise of the sampler, and Delta the excess of the two losses over their minima, each the integral over
t of half a squared error summed over the entries of a sample (Albergo 2023)::

    KL(data || samples) <= Delta velocity / eps + eps Delta score    least at  eps^2 = Delta velocity / Delta score

There is no such bound for the ODE, eps = 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from condiff.conditions import as_conditions
from condiff.errors import BadValue, Incompatible
from condiff.process import Process
from condiff.random import as_source
from condiff.typing import Float, Tensor


class FieldLosses(NamedTuple):
    """Losses of a model's velocity and score, integrated over the times, as numbers."""

    velocity: float
    score: float


@torch.no_grad()
def field_losses(
    denoiser: Any,
    x: Float[Tensor, "batch *shape"],
    cond: Any = None,
    *,
    times: int = 64,
    low: float = 1e-3,
    high: float = 1.0 - 1e-3,
    reference: Any = None,
    rng: Any = None,
) -> FieldLosses:
    """The losses ``int E |f|^2 / 2 - f . target dt`` of both fields, or their excess over an exact model's.

    Without a reference only differences between models mean anything: the minima aren't zero, and values are negative.
    Each noise is used with both signs, which keeps the variance finite at the ends of an interpolant.

    Args:
        denoiser: the model, of one continuous state.
        x: data (B, ...), with their endpoints among the conditions where the process has one.
        times: how many, one at random in each equal part of [low, high].
        reference: the exact model (an oracle): then half the squared distances to its fields.
        rng: of times and noise; one seed makes models comparable.

    Raises:
        BadValue: fewer than one time, a range outside (0, 1), a missing endpoint.
        Incompatible: a process without a score.
    """
    process = denoiser.process
    if not isinstance(process, Process) or not process.noise_law.gaussian:
        raise Incompatible(f"velocity and score are fields of one state under Gaussian noise, not of {process}")
    if times < 1 or not 0.0 < low < high < 1.0:
        raise BadValue(f"field_losses needs times >= 1 and 0 < low < high < 1, got {times}, {low} and {high}")
    source, cond = as_source(rng), as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    totals = torch.zeros(2, dtype=torch.float64)
    for i in range(times):
        u = (i + float(source.uniform((1,)))) / times
        level = process.at(low + (high - low) * u)
        noise = source.normal(x.shape, x.dtype, x.device)
        for z in (noise, -noise):
            truth = process.forward(x, level, source=cond.source, noise=z)
            said = denoiser(truth.x_t, level, cond)
            if reference is not None:
                truth = reference(truth.x_t, level, cond)
            for j, kind in enumerate(("velocity", "score")):
                totals[j] += _half(said.to(kind), truth.to(kind), square=reference is not None)
    velocity, score = (totals * (high - low) / (2 * times)).tolist()
    return FieldLosses(velocity, score)


def _half(said: Tensor, true: Tensor, square: bool) -> float:
    """``|said - true|^2 / 2`` or, without ``square``, its part that depends on what is said; summed, mean over rows."""
    said, true = said.double().flatten(1), true.double().flatten(1)
    value = 0.5 * (said - true).square() if square else (0.5 * said - true) * said
    return float(value.sum(1).mean())


def kl_bound(excess: FieldLosses, noise: float) -> float:
    """``Delta velocity / noise + noise Delta score``, an upper bound on the KL divergence of ``SDE(noise, "constant")``

    Raises:
        BadValue: noise that isn't positive, a negative excess.
    """
    _check(excess)
    if not 0.0 < noise < math.inf:
        raise BadValue(f"the bound is for a noise level above 0, got {noise}: the ODE has none")
    return excess.velocity / noise + noise * excess.score


def best_noise(excess: FieldLosses) -> float:
    """The noise level with the least :func:`kl_bound`, ``sqrt(Delta velocity / Delta score)``.

    Raises:
        BadValue: a negative excess, or none of the score.
    """
    _check(excess)
    if excess.score == 0.0:
        raise BadValue("the score is exact, so that more noise is always better: there is no best level")
    return math.sqrt(excess.velocity / excess.score)


def _check(excess: FieldLosses) -> None:
    if not (excess.velocity >= 0.0 and excess.score >= 0.0):
        raise BadValue(
            f"an excess over the least loss is >= 0, got {excess}: give field_losses() the exact model as reference=, "
            "or subtract the losses of a better model"
        )
