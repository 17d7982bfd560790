"""DDIM: Song, Meng & Ermon 2021, eq. 12, with eta between 0 (deterministic) and 1 (ancestral variance)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from condiff.errors import BadValue
from condiff.process import algebra
from condiff.process.algebra import Weight
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State


class Coefficients(NamedTuple):
    x0: Weight
    noise: Weight
    source: Weight
    std: Weight


@dataclass(frozen=True)
class DDIM(Solver):
    """``x_s = data_s x0 + source_s y + sqrt(noise_s^2 - std^2) noise + std z``.

    ``std = eta std(x_s | x_t, x0)``. First order; exact for data at a single point, and on any linear-Gaussian
    process with an endpoint.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not self.eta >= 0.0:
            raise BadValue(f"eta must be >= 0, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def plan(self, levels: Sequence[Level]) -> list[Coefficients]:
        out = []
        for t, s in zip(levels[:-1], levels[1:], strict=True):
            std = self.eta * t.process.posterior_std(t, s) if self.eta else 0.0
            out.append(Coefficients(s.data, algebra.sqrt(s.noise * s.noise - std * std), s.source, std))
        return out

    def advance(self, x: Tensor, prediction: Prediction, c: Coefficients, state: State) -> tuple[Tensor, Weight]:
        return prediction.linear(c.x0, c.noise, c.source), c.std
