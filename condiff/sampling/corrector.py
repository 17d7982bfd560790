"""Predictor-corrector sampling: Langevin steps at each new level (Song 2021, alg. 2, 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.loop import Run
from condiff.sampling.solver import Solver, State


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Any solver, followed by ``steps`` Langevin steps at the level that it reached::

        x <- x + e score(x) + sqrt(2 e) z,    e = 2 (snr |z| / |score|)^2

    with both norms per sample: a sample doesn't depend on its neighbours (the released code averages over the batch,
    and multiplies e by ``1 - beta`` on variance-preserving paths). A noise-free level isn't corrected.

    At one level the iteration settles on the law ``p_t``, with a variance that is too large by ``1 / (1 - snr^2)`` for
    normal data. Costs ``steps`` more evaluations per step.

    Args:
        predictor: the solver.
        steps: Langevin steps per level.
        snr: signal-to-noise ratio of a Langevin step.

    Raises:
        BadValue: steps < 1 or snr outside (0, 1).
    """

    predictor: Solver
    steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 < self.snr < 1.0:
            raise BadValue(f"needs steps >= 1 and 0 < snr < 1, got {self.steps} and {self.snr}")

    @property
    def stochastic(self) -> bool:
        return True

    def start(self) -> State:
        return self.predictor.start()

    def plan(self, levels: Sequence[Level]) -> list[Any]:
        for process in {level.process for level in levels}:
            if not process.noise_law.gaussian:
                raise Incompatible(f"Langevin steps follow a score, which {process} hasn't: use the predictor alone")
        return self.predictor.plan(levels)

    def step(self, x: Tensor, c: Any, state: State, run: Run) -> tuple[Tensor, Prediction | None, Tensor | None]:
        x, prediction, noise = self.predictor.step(x, c, state, run)
        if not _noise_free(run.s):
            for _ in range(self.steps):
                x = langevin(x, run.denoise(x, run.s).score, run.draw(x), self.snr)
        return x, prediction, noise


def langevin(x: Tensor, score: Tensor, z: Tensor, snr: float) -> Tensor:
    """One step of Langevin's equation, its size from the norms of each sample."""
    e = 2.0 * (snr * _norm(z) / _norm(score)) ** 2
    return x + e * score + torch.sqrt(2.0 * e) * z


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))


def _noise_free(level: Level) -> bool:
    if not isinstance(level.noise, Tensor):
        return level.noise == 0.0
    free = level.noise == 0.0
    if bool(free.any()) and not bool(free.all()):
        raise BadValue("PredictorCorrector needs all rows at a noisy level, or all at a noise-free one")
    return bool(free.all())
