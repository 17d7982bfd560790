"""Predictor-corrector sampling: Langevin steps at each new level (Song 2021, alg. 2, 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process.algebra import match, readable
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.loop import Run
from condiff.sampling.solver import Solver, State


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Any solver, followed by ``steps`` Langevin steps at the level that it reached::

        x <- x + e score(x) + sqrt(2 e) z,    e = 2 (snr |z| / |score|)^2

    with both norms per sample: a sample doesn't depend on its neighbours (the released code averages over the batch,
    and multiplies e by ``1 - beta`` on variance-preserving paths). A noise-free level isn't corrected, nor are rows or
    frames whose time repeats.

    At one level the iteration settles on the law ``p_t``, with a variance that is too large by ``1 / (1 - snr^2)`` for
    normal data. Costs ``steps`` more evaluations per step.

    Args:
        predictor: the solver, one that doesn't go on from the evaluations of earlier steps.
        steps: Langevin steps per level.
        snr: signal-to-noise ratio of a Langevin step.

    Raises:
        BadValue: steps < 1 or snr outside (0, 1).
        Incompatible: a multistep predictor: its samples would not have the law of the data, with any number of steps.
    """

    predictor: Solver
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 < self.snr < 1.0:
            raise BadValue(f"needs steps >= 1 and 0 < snr < 1, got {self.steps} and {self.snr}")
        if self.predictor.remembers:
            raise Incompatible(
                f"Langevin steps leave the states whose evaluations {self.predictor} goes on from: take a predictor of "
                "one step, such as DDIM(), Heun() or DPMSolverPP(order=1)"
            )

    @property
    def stochastic(self) -> bool:
        return True

    def check(self, denoiser: Any, x: Any) -> None:
        self.predictor.check(denoiser, x)

    def start(self) -> State:
        return self.predictor.start()

    def plan(self, levels: Sequence[Level]) -> list[Any]:
        process = levels[0].process
        if not process.noise_law.gaussian:
            raise Incompatible(f"Langevin steps follow a score, which {process} hasn't: use the predictor alone")
        return self.predictor.plan(levels)

    def step(self, x: Tensor, c: Any, state: State, run: Run) -> tuple[Tensor, Prediction | None, Tensor | None]:
        x, prediction, noise = self.predictor.step(x, c, state, run)
        moving = _noisy(run.t, run.s)
        # With a time per row a step draws whether or not some row moves: a row's noise doesn't depend on the others.
        if moving is not False or isinstance(run.s.t, Tensor):
            for _ in range(self.steps):
                z = run.draw(x)
                x = x if moving is False else self._correct(x, z, moving, run)
        return x, prediction, noise

    def _correct(self, x: Tensor, z: Tensor, moving: bool | Tensor, run: Run) -> Tensor:
        said = run.denoise(x, run.s)
        if moving is True:
            return langevin(x, said.score, z, self.snr)
        assert isinstance(moving, Tensor)
        weight = torch.where(moving, -1.0 / torch.where(moving, run.s.noise, 1.0), 0.0)
        still = ~match(moving, x).bool()
        return torch.where(still, x, langevin(x, said.linear(noise=weight), z.masked_fill(still, 0.0), self.snr))


def langevin(x: Tensor, score: Tensor, z: Tensor, snr: float) -> Tensor:
    """One step of Langevin's equation, its size from the norms of each sample; none where the score vanishes."""
    length = _norm(score)
    step = snr * _norm(z) * torch.where(length > 0.0, 1.0 / torch.where(length > 0.0, length, 1.0), 0.0)
    return x + 2.0 * step**2 * score + 2.0 * step * z


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))


def _noisy(t: Level, s: Level) -> bool | Tensor:
    """Where a step led to a level with noise: for all, for none, or a mask over the leading dimensions."""
    if not isinstance(s.t, Tensor):
        return bool(s.t != t.t and s.noise != 0.0)
    moving = (s.t != t.t) & (s.noise != 0.0)
    if not readable(moving) or (bool(moving.any()) and not bool(moving.all())):
        return moving
    return bool(moving.all())
