"""Objectives: from a batch to a loss.

An objective is anything that is called ``objective(denoiser, batch, rng, training) -> Losses``. :class:`Denoising`
is the regression that all denoisers are trained with: draw a time and noise for each row, and compare what the
denoiser says about ``x_t`` with the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions, cat
from condiff.errors import BadType, BadValue, unknown
from condiff.process import KINDS, Prediction
from condiff.process.algebra import match
from condiff.random import Source, as_source
from condiff.training.batch import Batch, as_batch
from condiff.training.coupling import Coupling
from condiff.training.times import Times, UniformTimes
from condiff.training.variance import LearnedVariance
from condiff.training.weighting import UniformWeight, Weighting


class Losses(NamedTuple):
    """What an objective returns.

    loss: the scalar to differentiate: the mean of ``weight * per_sample`` plus the auxiliary losses.
    per_sample: (B,) loss of each row, before the batch's row weights.
    parts: detached scalars to log, by name.
    t: the times of the rows, for messages.
    """

    loss: Tensor
    per_sample: Tensor
    parts: dict[str, Tensor]
    t: Tensor | dict[str, Tensor] | None = None


class Objective(Protocol):
    """The interface of objectives."""

    def __call__(self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: Any, training: bool = True) -> Losses: ...


class Distance(ABC):
    """Base: an elementwise distance."""

    @abstractmethod
    def __call__(self, said: Tensor, true: Tensor) -> Tensor:
        """Of the shape of both."""


@dataclass(frozen=True)
class L2(Distance):
    """``(said - true)^2``."""

    def __call__(self, said: Tensor, true: Tensor) -> Tensor:
        return (said - true).square()


@dataclass(frozen=True)
class L1(Distance):
    """``|said - true|``."""

    def __call__(self, said: Tensor, true: Tensor) -> Tensor:
        return (said - true).abs()


@dataclass(frozen=True, kw_only=True)
class Huber(Distance):
    """``e^2 / 2`` for ``|e| < delta``, else ``delta (|e| - delta / 2)``."""

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0.0:
            raise BadValue(f"Huber needs delta > 0, got {self.delta}")

    def __call__(self, said: Tensor, true: Tensor) -> Tensor:
        return torch.nn.functional.huber_loss(said, true, reduction="none", delta=self.delta)


@dataclass(frozen=True)
class Inner(Distance):
    """``said^2 / 2 - said true``, half the square without ``true^2 / 2`` (Albergo 2023).

    The same gradients and minimiser as half of ``"l2"``, and a smaller variance of the value where the truth is large,
    as the velocity of an interpolant near its ends. Values are negative when all is well.
    """

    def __call__(self, said: Tensor, true: Tensor) -> Tensor:
        return (0.5 * said - true) * said


DISTANCES = {"l2": L2(), "l1": L1(), "huber": Huber(), "inner": Inner()}


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """``E w(t) d(said, true)`` over times, noise and data.

    Args:
        target: the quantity that is compared; None for what the denoiser itself predicts (each of its fields).
            Several are summed.
        weighting: see :mod:`condiff.training.weighting`.
        times: law of the times.
        antithetic: use each noise with both signs: the same expectation, and a finite variance where the
            velocity of an interpolant is singular (Albergo 2023, section 6).
        transform: what happens to the conditions, ``transform(cond, t, rng, training) -> Conditions``: dropout
            for classifier-free guidance, perturbation, corruption.
        loss: ``"l2"``, ``"l1"``, ``"huber"``, ``"inner"`` or a :class:`Distance`.
        coupling: which endpoint (or noise, on a path without endpoint) goes with which row of a batch; as they come
            by default.
        variance: what trains a network's variance head.

    The loss of a row is the mean over its elements, over those of the mask where there is one (and 0 for a row
    whose mask is empty). It is computed in float32, or float64 for float64 samples. What the denoiser puts into
    ``prediction.aux["losses"]`` (a mapping of names to scalars or (B,) tensors, already weighted) is added.
    """

    target: str | tuple[str, ...] | None = None
    weighting: Weighting = field(default_factory=UniformWeight)
    times: Times = field(default_factory=UniformTimes)
    antithetic: bool = False
    transform: Any = None
    loss: str | Distance = "l2"
    variance: LearnedVariance | None = None
    coupling: Coupling | None = None

    def __post_init__(self) -> None:
        for name in self._targets() or ():
            if name not in KINDS:
                raise unknown("training target", name, KINDS)
        if isinstance(self.loss, str) and self.loss not in DISTANCES:
            raise unknown("loss", self.loss, DISTANCES)

    def _targets(self) -> tuple[str, ...] | None:
        return (self.target,) if isinstance(self.target, str) else self.target

    def __call__(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch, at times and noise drawn from ``rng``.

        Raises:
            BadType, BadValue: a batch that doesn't fit the denoiser.
        """
        batch, rng = as_batch(batch, getattr(denoiser, "kinds", None)), as_source(rng)
        x, process = _floats(batch.x), denoiser.process
        # On a GPU times and weights are worked out there, so that the host never waits.
        where = x.device if x.device.type == "cuda" else "cpu"
        t = self.times.sample(process, x.shape, rng, where)
        noise = process.noise_law.sample(rng, x.shape, x.dtype, x.device)
        cond = batch.cond if self.transform is None else self.transform(batch.cond, t=t, rng=rng, training=training)
        if self.coupling is not None:
            noise, cond = self._coupled(process, x, noise, cond, rng)
        return self.at(denoiser, x, t, noise, cond, weight=batch.weight, mask=cast("Tensor | None", batch.mask))

    def _coupled(
        self, process: Any, x: Tensor, noise: Tensor, cond: Conditions, rng: Source
    ) -> tuple[Tensor, Conditions]:
        """Noise and conditions, with the endpoint (or the noise where there is none) in the coupling's order."""
        assert self.coupling is not None
        if not process.has_source:
            return noise[self.coupling(x, noise, rng)], cond
        name = next((n for n, c in cond.items() if c.kind == "endpoint"), None)
        if name is None or cond[name].value.shape != x.shape:
            raise BadValue(f"a coupling needs an endpoint of shape {tuple(x.shape)} in each batch, got {cond}")
        order = self.coupling(x, cond[name].value, rng)
        return noise, cond.replace(**{name: cond[name].map(lambda v: v[order])})

    def at(
        self,
        denoiser: Any,
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        cond: Mapping[str, Any] | Conditions | None = None,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Losses:
        """The loss at given times and noise: comparisons between conditions or models can share them.

        Args:
            x: clean samples (B, ...).
            t: one time, (B,), or per frame (B, F).
            noise: of x's shape.
        """
        cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
        if self.antithetic:
            per_sample, parts, total = self._both_signs(denoiser, x, t, noise, cond, mask)
        else:
            per_sample, parts, total = self._terms(denoiser, x, t, noise, cond, mask)
        loss = (per_sample if weight is None else per_sample * weight.to(per_sample)).mean() + total
        return Losses(loss, per_sample, {k: v.detach() for k, v in parts.items()}, torch.as_tensor(t))

    def _both_signs(self, denoiser, x, t, noise, cond, mask):
        twice = lambda v: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim and len(v) == len(x) else v
        both = torch.cat([noise, -noise])
        per_sample, parts, total = self._terms(denoiser, twice(x), twice(t), both, cat([cond, cond]), twice(mask))
        return per_sample.reshape(2, -1).mean(0), parts, total

    def _terms(self, denoiser, x, t, noise, cond, mask) -> tuple[Tensor, dict[str, Tensor], Tensor | float]:
        """``(per_sample (B,), parts, batch-level losses)``."""
        truth = denoiser.process.forward(x, t, source=cond.source, noise=noise)
        said = denoiser(truth.x_t, truth.level, cond)
        fields = self.fields(said, self.aim(truth, cond), mask)
        per_sample = torch.stack(list(fields.values())).sum(0)
        parts = {kind: value.mean() for kind, value in fields.items()} if len(fields) > 1 else {}
        total: Tensor | float = 0.0
        for name, value in said.aux.get("losses", {}).items():
            parts[name] = value.mean()
            per_sample, total = (per_sample + value, total) if value.ndim else (per_sample, total + value)
        return per_sample, parts, total

    def aim(self, truth: Prediction, cond: Conditions) -> Prediction:
        """What the denoiser's answer is compared with: the truth about ``truth.x_t``, or what a teacher says."""
        return truth

    def fields(self, said: Prediction, truth: Prediction, mask: Tensor | None) -> dict[str, Tensor]:
        """The loss of each quantity, by name: (B,) each."""
        fields = {kind: self.field(kind, said, truth, mask) for kind in self._targets() or tuple(said.values)}
        if self.variance is not None:
            fields["variance"] = masked_mean(self.variance(said, truth), mask)
        return fields

    def field(self, kind: str, said: Prediction, truth: Prediction, mask: Tensor | None) -> Tensor:
        """The weighted loss of one quantity, (B,)."""
        distance = DISTANCES[self.loss] if isinstance(self.loss, str) else self.loss
        error = distance(_at_least_float32(said.to(kind)), _at_least_float32(truth.to(kind)))
        weight = self.weighting.on(kind, truth.level)
        error = match(weight, error) * error if isinstance(weight, Tensor) else weight * error
        return masked_mean(error, mask)


def masked_mean(value: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all but the first dimension, of the elements in the mask; 0 for a row without any: (B,)."""
    if mask is None:
        return value.flatten(1).mean(1) if value.ndim > 1 else value
    mask = mask.to(value).expand_as(value).flatten(1)
    # where, not a product: what isn't counted may be NaN
    kept = torch.where(mask != 0, value.flatten(1) * mask, 0.0)
    return kept.sum(1) / mask.sum(1).clamp_min(torch.finfo(value.dtype).tiny)


def _floats(x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise BadType("Denoising takes samples of one variable; joint states have JointDenoising")
    if not x.dtype.is_floating_point:
        raise BadType(f"denoising needs floating-point samples, got {x.dtype}")
    return x


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
