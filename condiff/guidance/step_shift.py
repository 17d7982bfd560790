"""The hook of an energy that displaces steps instead of predictions: ``Energy(shift="mean")`` and ``"state"``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from condiff.errors import Incompatible
from condiff.guidance.guided import always, strength
from condiff.process import Prediction
from condiff.process.algebra import Weight, scale
from condiff.sampling.joint import hold_given
from condiff.sampling.loop import Hook, Run, Step

GRADIENT = "energy_gradient"  # where a prediction carries the gradient at its x_t


@dataclass(frozen=True, eq=False)
class StepShift(Hook):
    """``mean - scale std^2 grad E``, or the same of the new state, noise included, at the level that the step left.

    Args:
        energy: the :class:`~condiff.guidance.Energy` that it belongs to.
    """

    energy: Any
    _std: list[Weight] = field(default_factory=list, init=False, repr=False)

    def start(self, run: Run) -> None:
        if run.denoiser is not self.energy:
            raise Incompatible(
                f"guidance with shift={self.energy.shift!r} acts on steps, so it goes around all other guidance, not "
                f"inside of {run.denoiser!r}"
            )
        amount = run.solver.relative_noise
        if not amount:
            adds = "no noise" if amount == 0.0 else "no fixed multiple of the reverse SDE's noise"
            raise Incompatible(
                f"shift={self.energy.shift!r} is scaled by the variance of a step, and {run.solver} adds {adds}: use "
                "DDPM(), or shift='score'"
            )
        self._std.clear()

    def mean(self, mean: Tensor, std: Weight, prediction: Prediction, run: Run) -> Tensor:
        self._std[:] = [std]
        weight = self._weight(std, mean, prediction.level)
        if self.energy.shift != "mean" or always(weight, 0.0):
            return mean
        return mean - scale(weight, prediction.aux[GRADIENT])

    def after(self, step: Step, run: Run) -> Tensor:
        if step.prediction is None:  # a step up, without a network call
            return step.x_s
        if not self._std:
            raise Incompatible(f"{run.solver} shows no mean of its steps: use DDPM(), or shift='score'")
        weight = self._weight(self._std.pop(), step.x_s, step.t)
        if self.energy.shift != "state" or always(weight, 0.0):
            return step.x_s
        run.nfe += 1
        moved = step.x_s - scale(weight, self.energy.gradient_at(step.x_s, step.t, run.cond))
        return moved if run.held is None else hold_given(run.held, step.x_t, moved)

    def _weight(self, std: Weight, x: Tensor, level: Any) -> Weight:
        """``scale std^2``."""
        if not isinstance(std, Tensor) and std == 0.0:
            return 0.0
        weight = strength(self.energy.scale, level, x, 0.0, self.energy.interval)
        return weight if always(weight, 0.0) else weight * std * std
