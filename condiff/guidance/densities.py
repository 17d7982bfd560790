"""The log-densities that a superposition goes by, kept along the trajectory by a hook of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, cat
from condiff.denoiser import Denoises
from condiff.derivatives import draw_probes, exact, hutchinson
from condiff.errors import BadValue, Incompatible
from condiff.guidance.gradient import detached
from condiff.guidance.guided import part, repeat_level, repeated, strength
from condiff.process import Level, Prediction
from condiff.process.algebra import Weight, match
from condiff.sampling.density import adds_noise, check_run
from condiff.sampling.gains import gains
from condiff.sampling.loop import Hook, Run, Step


@dataclass
class Memory:
    """What a superposition knows of the trajectory it is on.

    Args:
        log_prob: (B, M), relative to the first state; None before the first step.
        weights: the last kappa, (B, M).
        parts: the predictions of the models at the start of this step.
        divergences: of their scores, (B, M), on an ODE.
        probes: of this step, for Hutchinson.
        waiting: a trajectory has begun and its loop hasn't asked the hook yet.
        ode: the solver adds no noise.
        lift: (M,), what each log q gains in this step.
        rate: ``g^2 (t - s) / 2`` of this step, on an ODE.
    """

    log_prob: Tensor | None = None
    weights: Tensor | None = None
    parts: list[Prediction] | None = None
    divergences: Tensor | None = None
    probes: Tensor | None = None
    waiting: bool = False
    ode: bool = False
    lift: Tensor | None = None
    rate: Weight = 1.0

    def reset(self, waiting: bool) -> None:
        """For a new trajectory."""
        self.__init__(waiting=waiting)

    def read(self, name: str) -> Tensor:
        """One of the results.

        Raises:
            BadValue: when there is none.
        """
        value = getattr(self, name)
        if value is None:
            raise BadValue(f"this superposition has no {name}: it keeps them while it is sampled (an average has none)")
        return value


class Keeper(Hook):
    """Keeps the log-densities of a superposition; for AND on a step with noise, projects that noise."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.memory = owner, owner._memory

    def start(self, run: Run) -> None:
        owner, memory = self.owner, self.memory
        memory.waiting = False
        if owner.mode == "average":
            return
        check_run(run, owner.divergence is not None)
        amount = run.solver.relative_noise
        if amount not in (0.0, 1.0):
            raise Incompatible(f"{run.solver} adds {amount:g} times the reverse SDE's noise: add all of it, or none")
        memory.ode = amount == 0.0
        memory.lift = torch.tensor(owner.lift or [0.0] * owner.count, dtype=torch.float64) / run.steps

    def before(self, x: Tensor, run: Run) -> Tensor:
        owner, memory = self.owner, self.memory
        memory.parts = None
        if memory.ode:
            if owner.divergence == "hutchinson":
                memory.probes = draw_probes(owner.probes, "rademacher", x, run.rng)
            if owner.lift is not None:
                memory.rate = 0.5 * run.denoiser.process.diffusion2(run.t) * (run.t.t - run.s.t)
        return x

    def drawn(self, noise: Tensor, mean: Tensor, std: Weight, prediction: Prediction, run: Run) -> Tensor:
        owner, memory = self.owner, self.memory
        if owner.mode != "and" or memory.ode or not adds_noise(run.s, run):
            return noise
        found = gains(self._parts(noise), run.s, owner.spread)
        wide = match(std, noise) if isinstance(std, Tensor) else std
        free = None if run.held is None else ~run.held.expand(noise.shape).flatten(1)
        change, c = found.levelled(mean + wide * noise, memory.lift.to(noise.device), free)  # type: ignore[union-attr]
        scale = strength(owner.scale, run.t, prediction.x_t)
        if not isinstance(found.drive, Tensor) and (not isinstance(scale, Tensor) or scale.ndim < 2):
            by = scale.to(c).reshape(-1, 1) if isinstance(scale, Tensor) else scale
            memory.weights = 1.0 / owner.count + c / (by * found.drive)
        change = change.reshape(noise.shape) / wide
        if isinstance(wide, Tensor):  # where the time repeats no noise is added
            change = torch.where(wide > 0.0, change, 0.0)
        return noise + change.to(noise.dtype)

    def after(self, step: Step, run: Run) -> Tensor:
        owner, memory = self.owner, self.memory
        if owner.mode == "average":
            return step.x_s
        if memory.log_prob is None:
            memory.log_prob = torch.zeros(len(step.x_s), owner.count, dtype=torch.float64, device=step.x_s.device)
        pure = not isinstance(step.t.data, Tensor) and step.t.data == 0.0  # where all scores are the same
        if adds_noise(step.s, run) and not (memory.ode and pure):
            found = gains(
                self._parts(step.x_s), step.s, owner.spread, memory.divergences, run.solver.relative_noise or 0.0
            )
            memory.log_prob = memory.log_prob + found.at(step.x_s)
        return step.x_s

    def _parts(self, x: Tensor) -> list[Prediction]:
        """What the models said at the start of the step (not of a blend that the superposition may be part of)."""
        parts = self.memory.parts
        if parts is None or len(parts[0].x_t) != len(x):
            raise Incompatible(f"{self.owner!r} was asked for other rows than those sampled: wrap the models inside it")
        return parts


def with_divergence(
    model: Denoises, x_t: Tensor, level: Level, conds: list[Conditions], probes: Tensor | None
) -> tuple[list[Prediction], Tensor]:
    """The predictions for each of ``conds``, from one call, and the divergences of their scores, (B, len(conds))."""
    n = len(conds)
    with torch.enable_grad():
        x = repeated(x_t, n).detach().requires_grad_()
        said = model(x, repeat_level(level, n), cat(conds))
        score = said.score
        found = exact(score, x) if probes is None else hutchinson(score, x, torch.cat([probes] * n, 1))
    said = detached(said, x.detach())
    return [part(said, i, x_t, level) for i in range(n)], found.mean(1).reshape(n, -1).T
