"""Guidance by gradients: of a noisy classifier, of an energy of x_t, of an energy of the denoised x0.

A gradient ``d`` of log-density shifts the score by d; for fixed x_t that is, in the other quantities,

    score + d        noise - noise(t) d        x0 + noise(t)^2 / data(t) d

and what the denoiser predicts is shifted in its own quantity. Energies are per sample: ``energy(u, level, cond)``
returns (B,), so that a sample's guidance doesn't depend on its neighbours. Gradients are worked out under
``torch.no_grad`` too, and are differentiable themselves where gradients are enabled around.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions
from condiff.denoiser import Denoises
from condiff.derivatives import value_gradient, without_graph
from condiff.errors import Degenerate, Incompatible, unknown
from condiff.guidance.guided import (
    Guided,
    States,
    Strength,
    always,
    check_denoiser,
    check_interval,
    check_one_state,
    check_strength,
    strength,
)
from condiff.guidance.step_shift import GRADIENT, StepShift
from condiff.process import Level, Prediction, algebra
from condiff.process.algebra import Weight, finite, rms, scale
from condiff.process.prediction import row

PerSample = Callable[[Tensor, Level, Conditions], Tensor]
SHIFTS = ("score", "x0", "noise")
STEPS = ("mean", "state")  # what is displaced in a step of the sampler, behind the prediction
NORMS = (None, "unit", "relative")


def gradient(fn: PerSample) -> PerSample:
    """The gradient of a per-sample function: ``gradient(log_prob)(x, level, cond)`` has x's shape.

    Example:
        >>> sample(model, solver=DDPM(), steps=100, hooks=[MeanShift(gradient(log_prob), scale=2.0)])
    """

    def grad(x: Tensor, level: Level, cond: Conditions) -> Tensor:
        return value_gradient(x, lambda u: (fn(u, level, cond), None))[0]

    return grad


def shifted(prediction: Prediction, kind: str, delta: Tensor, amount: Weight = 1.0) -> Prediction:
    """``kind + amount delta`` at the same x_t, said in the quantities that were predicted.

    Where the amount is 0 nothing is shifted, whatever the shift would be there.

    Raises:
        Degenerate: where the shift is infinite in those (a score at data(t) = 0, x0 at noise(t) = 0).
        Incompatible: a score under non-Gaussian noise.
    """
    level = prediction.level
    if kind == "score" and not level.process.noise_law.gaussian:
        raise Incompatible(
            f"the noise of {level.process} is not Gaussian, so its score isn't known: use shift='x0' or 'noise'"
        )
    x0, noise = _shift(kind, level)
    values = {}
    for name, value in prediction.values.items():
        r = row(name, level)
        weight = _product(amount, _product(r[0], x0) + _product(r[2], noise))
        if not finite(weight):
            raise Degenerate(
                f"a shift of the {kind} is infinite in {name} at t = {level.t}, where data(t) = {level.data}, "
                f"noise(t) = {level.noise}: leave this end out with interval=, such as (0.0, 0.999), or shift x0"
            )
        values[name] = value + scale(weight, delta)
    return Prediction(prediction.x_t, level, values, prediction.source, prediction.aux)


def _product(a: Weight, b: Weight) -> Weight:
    """``a b`` with ``0 inf = 0``: a quantity that a shift doesn't enter stays as it is."""
    if not isinstance(a, Tensor):
        return 0.0 if a == 0.0 else a * b
    if not isinstance(b, Tensor):
        return algebra.where(a == 0.0, 0.0, a * b)
    b = b.to(a.device).reshape(b.shape + (1,) * max(a.ndim - b.ndim, 0))
    a = a.reshape(a.shape + (1,) * max(b.ndim - a.ndim, 0))
    return algebra.where(a == 0.0, 0.0, a * b)


def _shift(kind: str, level: Level) -> tuple[Weight, Weight]:
    """What a unit shift of ``kind`` is in x0 and in the noise, for fixed x_t."""
    a, s = level.data, level.noise
    if kind == "score":
        return algebra.divide(s * s, a), -s
    if kind == "x0":
        return 1.0, -1.0 * algebra.divide(a, s)
    return -1.0 * algebra.divide(s, a), 1.0


def normalised(grad: Tensor, norm: str | None, like: Tensor | None) -> Tensor:
    """The gradient as it is, scaled to unit RMS per sample, or to the RMS of ``like``."""
    if norm is None:
        return grad
    size = rms(grad)
    wanted = rms(like) if norm == "relative" and like is not None else torch.ones_like(size)
    return grad * torch.where(size > 0.0, wanted / torch.where(size > 0.0, size, 1.0), 0.0)


@dataclass(frozen=True, eq=False, repr=False)
class Energy(Guided):
    """Guidance towards low energy: ``score - scale grad E``.

    Args:
        denoiser: what is guided.
        energy: ``energy(u, level, cond) -> (B,)``, of ``u = x_t`` or of the denoised ``u = x0``.
        scale: number, (B,) per row, or function of the level.
        at: ``"x_t"`` or ``"x0"``.
        through: for an energy of x0: differentiate with respect to x_t, through the denoiser (DPS, Chung 2023),
            or with respect to x0, taken as if it were the gradient at x_t (cheaper by a backward pass).
        shift: the quantity that is displaced: ``"score"``, or ``"x0"`` (``x0 - scale grad E``), or ``"noise"``
            (``noise + scale grad E``); or, of a sampler that adds noise, ``"mean"``, the mean of a step
            (``mean - scale std^2 grad E``, Dhariwal & Nichol 2021, alg. 1), or ``"state"``, the new state, noise
            included, by the gradient there at the level that the step left (as the released code of TSDiff has it,
            Kollovieh 2023; a second evaluation a step). These two guide nothing on steps without noise, such as the
            last one.
        norm: ``"unit"`` scales the gradient of each sample to RMS 1, ``"relative"`` to the RMS of what is displaced.
        interval: guide for low <= t <= high only.

    Raises:
        BadValue: unknown options; energies that aren't (B,) or don't depend on their input.
        Incompatible: a score under non-Gaussian noise.
        Degenerate: an infinite shift, such as of the score where data(t) = 0.

    A mean or state is displaced in the loop: by a solver without noise, or from inside of another guidance, it is
    refused there as :class:`~condiff.errors.Incompatible`.
    """

    denoiser: Denoises
    energy: PerSample
    scale: Strength = 1.0
    at: str = "x0"
    through: bool = True
    shift: str = "score"
    norm: str | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        check_strength(self.scale, "scale")
        check_interval(self.interval)
        for name, known in (("at", ("x_t", "x0")), ("shift", (*SHIFTS, *STEPS))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, [n for n in NORMS if n])
        check_one_state(self.process, "guidance by gradients")
        if self.shift not in ("x0", "noise") and not self.process.noise_law.gaussian:
            raise Incompatible(f"the noise of {self.process} is not Gaussian: use shift='x0' or 'noise'")
        if self.shift in STEPS and self.norm == "relative":
            raise Incompatible(f"norm='relative' is to a predicted quantity, not to a {self.shift}: use norm='unit'")

    @property
    def step_hooks(self) -> tuple[Any, ...]:
        """What displaces the steps, where it is them."""
        return (*super().step_hooks, *((StepShift(self),) if self.shift in STEPS else ()))

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        weight = strength(self.scale, level, x_t, 0.0, self.interval)
        if always(weight, 0.0) or self.shift == "state":
            return self.denoiser(x_t, level, cond)
        grad, prediction = self._gradient(x_t, level, cond)
        if self.shift == "mean":
            aux = {**prediction.aux, GRADIENT: normalised(grad, self.norm, None)}
            return Prediction(prediction.x_t, prediction.level, prediction.values, prediction.source, aux)
        like = prediction.to(self.shift) if self.norm == "relative" else None
        sign = 1.0 if self.shift == "noise" else -1.0
        return shifted(prediction, self.shift, normalised(grad, self.norm, like), sign * weight)

    def gradient_at(self, x_t: Tensor, level: Level, cond: Conditions) -> Tensor:
        """The energy's gradient at a state, normalised as the energy says, of its shape."""
        return normalised(self._gradient(x_t, level, cond)[0], self.norm, None)

    def _gradient(self, x_t: Tensor, level: Level, cond: Conditions) -> tuple[Tensor, Prediction]:
        if self.at == "x0" and self.through:

            def fn(u: Tensor) -> tuple[Tensor, Prediction]:
                prediction = self.denoiser(u, level, cond)
                return self.energy(prediction.x0, level, cond), prediction

            grad, prediction = value_gradient(x_t, fn)
            return grad, prediction if torch.is_grad_enabled() else detached(prediction, x_t)
        prediction = self.denoiser(x_t, level, cond)
        u = x_t if self.at == "x_t" else prediction.x0
        return value_gradient(u, lambda v: (self.energy(v, level, cond), None))[0], prediction


def detached(prediction: Prediction, x_t: Tensor) -> Prediction:
    """Without its graph."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return without_graph(value)
        if isinstance(value, Prediction):
            return detached(value, x_t)
        return [cut(v) for v in value] if isinstance(value, list | tuple) else value

    values = {k: without_graph(v) for k, v in prediction.values.items()}
    aux = {k: cut(v) for k, v in prediction.aux.items()}
    return Prediction(x_t, prediction.level, values, prediction.source, aux)


@dataclass(frozen=True, eq=False, repr=False)
class Classifier(Guided):
    """Classifier guidance (Dhariwal & Nichol 2021): ``score + scale grad log p(y | x_t)``.

    Args:
        denoiser: what is guided; it is told all conditions (see :class:`Given` to choose).
        log_prob: ``log_prob(x_t, level, cond) -> (B,)``: the log-probability that a noise-aware classifier gives
            to what is wanted, for example ``net(x_t, level.t).log_softmax(-1)`` at ``cond["label"].value``.
        scale: number, (B,) per row, or function of the level; 1 with the exact classifier is plain conditional.
        interval: guide for low <= t <= high only.

    Raises: as :class:`Energy`.
    """

    denoiser: Denoises
    log_prob: PerSample
    scale: Strength = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._energy  # noqa: B018 - checks the options at the door

    @property
    def _energy(self) -> Energy:
        def energy(u: Tensor, level: Level, cond: Conditions) -> Tensor:
            return -self.log_prob(u, level, cond)

        return Energy(self.denoiser, energy, self.scale, at="x_t", interval=self.interval)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        return self._energy.predict(x_t, level, cond)
