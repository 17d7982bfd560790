"""Refinement in data space: samples moved to where the model's denoising loss is small (Kollovieh 2023, section 4.2).

``E(y) = |noise - noise_hat(x_t, t)|^2`` with ``x_t = data(t) y + noise(t) noise``, at one time t and with fresh noise
in each iteration, is a term of a bound on the negative log-likelihood; a second energy holds y near what is wanted. The
state is the clean sample all along: whatever another model made can be refined.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.derivatives import value_gradient
from condiff.errors import BadValue
from condiff.fields import checked
from condiff.process.level import Level, Time
from condiff.random import Source, as_source
from condiff.typing import Float, Tensor

Cond = Mapping[str, Any] | Conditions | None
Energy = Callable[[Tensor, Level, Conditions], Tensor]


def denoising_energy(
    denoiser: Denoises,
    x0: Float[Tensor, "batch *shape"],
    level: Level,
    noise: Tensor,
    cond: Conditions,
    mask: Tensor | None = None,
) -> Float[Tensor, " batch"]:
    """``sum |noise - noise_hat|^2`` of samples noised to a level with given noise, over what a mask counts."""
    truth = denoiser.process.forward(x0, level, source=cond.source, noise=noise)
    error = (noise - denoiser(truth.x_t, truth.level, cond).noise).square()
    return (error if mask is None else torch.where(mask, error, 0.0)).flatten(1).sum(1)


class Rule(ABC):
    """Base of the updates: ``y, memory = move(y, grad, energy, memory, rng)``. Subclasses are frozen dataclasses."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def move(self, y: Tensor, grad: Tensor, energy: Tensor, memory: Any, rng: Source) -> tuple[Tensor, Any]:
        """The next state, and what the rule remembers (None before the first); the energy is (B,)."""


@dataclass(frozen=True)
class Langevin(Rule):
    """``y <- y - step grad E + sqrt(2 step) noise z``.

    The paper writes ``sqrt(2 step gamma)``, its code this with ``noise = gamma``; the paper's is
    ``noise = sqrt(gamma)``.
    """

    step: float = 0.1
    noise: float = 0.1

    def __post_init__(self) -> None:
        if not (self.step > 0.0 and self.noise >= 0.0):
            raise BadValue(f"Langevin needs step > 0 and noise >= 0, got {self}")

    def move(self, y: Tensor, grad: Tensor, energy: Tensor, memory: Any, rng: Source) -> tuple[Tensor, Any]:
        y = y - self.step * grad
        if self.noise == 0.0:
            return y, memory
        return y + math.sqrt(2.0 * self.step) * self.noise * rng.normal(y.shape, y.dtype, y.device), memory


@dataclass(frozen=True)
class Descent(Rule):
    """``y <- y - step grad E``: to a mode. A sample's step is multiplied by ``factor`` after ``patience`` iterations
    without a lower energy of its own."""

    step: float = 0.1
    factor: float = 0.5
    patience: int = 100

    def __post_init__(self) -> None:
        if not (self.step > 0.0 and 0.0 < self.factor <= 1.0 and self.patience >= 1):
            raise BadValue(f"Descent needs step > 0, 0 < factor <= 1 and patience >= 1, got {self}")

    def move(self, y: Tensor, grad: Tensor, energy: Tensor, memory: Any, rng: Source) -> tuple[Tensor, Any]:
        step, best, since = memory or (torch.full_like(energy, self.step), torch.full_like(energy, math.inf), 0)
        since = torch.where(energy < best, 0, since + 1)
        late = since > self.patience
        step, since = torch.where(late, step * self.factor, step), torch.where(late, 0, since)
        memory = (step, torch.minimum(best, energy), since)
        return y - step.reshape(-1, *(1,) * (y.ndim - 1)) * grad, memory


def refine(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    *,
    at: Time,
    rule: Rule | None = None,
    steps: int = 20,
    near: Energy | None = None,
    weight: float = 1.0,
    cond: Cond = None,
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    grad: bool = False,
) -> Float[Tensor, "batch *shape"]:
    """Samples after some iterations of a rule on ``E(y) + weight near(y)``.

    Args:
        denoiser: a model of such samples.
        x: where to begin.
        at: the time of the denoising loss; see :func:`typical_time`.
        rule: :class:`Langevin` by default.
        steps: iterations, an evaluation and a backward pass each.
        near: ``near(y, level, cond) -> (B,)``, what else is wanted, such as
            :class:`condiff.guidance.SquaredError` with an observation among the conditions.
        weight: of ``near``.
        grad: keep the graph of all iterations.

    Raises:
        BadValue: fewer than one step, a time without noise. NonFinite: a gradient that isn't finite.
    """
    level, rng, rule = denoiser.process.at(at), as_source(rng), rule or Langevin()
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadValue(f"steps is a number of iterations, at least 1, got {steps!r}")
    if not isinstance(level.noise, Tensor) and level.noise == 0.0:
        raise BadValue(f"there is no noise to predict at t = {level.t}: refine at a time above it")
    memory = None
    for _ in range(steps):
        noise = denoiser.process.noise_law.sample(rng, x.shape, x.dtype, x.device)

        def energy(y: Tensor, noise: Tensor = noise) -> tuple[Tensor, Tensor]:
            value = denoising_energy(denoiser, y, level, noise, cond)
            value = value if near is None else value + weight * near(y, level, cond)
            return value, value.detach()

        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            slope, value = value_gradient(x, energy)
            x, memory = rule.move(x, slope, value, memory, rng)
    return x


@torch.no_grad()
def typical_time(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " n"],
    *,
    cond: Cond = None,
    mask: Tensor | None = None,
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
) -> float:
    """The time whose average denoising loss is closest to the average over all times.

    Args:
        x: samples of the data.
        times: to choose from, such as those of all levels of a table.
        mask: booleans that broadcast to x: which entries count, as in the training.
    """
    rng, cond = as_source(rng), as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    if times.ndim != 1 or not len(times):
        raise BadValue(f"times to choose from are (n,), got {tuple(times.shape)}")
    losses = []
    for level in denoiser.process.levels(times):
        noise = denoiser.process.noise_law.sample(rng, x.shape, x.dtype, x.device)
        losses.append(denoising_energy(denoiser, x, level, noise, cond, mask).double().mean())
    loss = torch.stack(losses)
    return float(times[int((loss - loss.mean()).abs().argmin())])
