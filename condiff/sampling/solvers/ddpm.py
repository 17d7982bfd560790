"""DDPM: ancestral sampling, Ho, Jain & Abbeel 2020; learned variances of Nichol & Dhariwal 2021."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight, match
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State

VARIANCES = ("posterior", "beta", "learned_range")


class Weights(NamedTuple):
    x0: Weight
    noise: Weight
    source: Weight
    small: Weight  # standard deviation of q(x_s | x_t, x0)
    large: Weight  # standard deviation of q(x_t | x_s)


@dataclass(frozen=True)
class DDPM(Solver):
    """``x_s = E[x_s | x_t, x0] + std z``; the mean is that of DDIM with eta = 1.

    ``variance``:

    * ``"posterior"``: ``std = std(x_s | x_t, x0)``, exact for data at a point (DDPM's small variance);
    * ``"beta"``: ``std = std(x_t | x_s)``, exact for unit normal data on a variance-preserving path (the large one);
    * ``"learned_range"``: between the two in the logarithm, ``log var = v log large + (1 - v) log small`` with
      ``v = (prediction.aux["variance"] + 1) / 2``, of x's shape (Nichol & Dhariwal 2021, eq. 15).

    No noise is added on a step to a noise-free level.
    """

    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown("variance", self.variance, VARIANCES)

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def relative_noise(self) -> float:
        return 1.0

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        return [self._weights(t, s) for t, s in itertools.pairwise(levels)]

    def _weights(self, t: Level, s: Level) -> Weights:
        process = t.process
        small, (ratio, beta) = process.posterior_std(t, s), process.kernel(s, t)
        # Where noise_t = 0 (the end of a bridge), x_t says nothing of x_s and both are noise_s.
        large = algebra.where(s.noise == 0.0, 0.0, algebra.where(t.noise == 0.0, s.noise, beta))
        return Weights(s.data, algebra.divide(ratio * s.noise * s.noise, t.noise), s.source, small, large)

    def advance(self, x: Tensor, prediction: Prediction, c: Weights, state: State) -> tuple[Tensor, Weight]:
        mean = prediction.linear(c.x0, c.noise, c.source)
        if self.variance == "posterior":
            return mean, c.small
        if self.variance == "beta":
            return mean, c.large
        return mean, _between(c, prediction, x)


def _between(c: Weights, prediction: Prediction, x: Tensor) -> Weight:
    """The learned standard deviation, of x's shape."""
    v = prediction.aux.get("variance")
    if v is None:
        raise Incompatible(
            "DDPM(variance='learned_range') needs a denoiser with a variance head (prediction.aux['variance']); "
            "variance='posterior' and 'beta' need none"
        )
    if v.shape != x.shape:
        raise BadValue(f"aux['variance'] of shape {tuple(v.shape)} must have the shape of x_t, {tuple(x.shape)}")
    small, large = (torch.as_tensor(w, dtype=torch.float64) for w in (c.small, c.large))
    if small.ndim == 0 and float(large) == 0.0:
        return 0.0
    # At a level without noise, and where the time repeats, both are zero: log(0) must not meet the weights.
    none = large == 0.0
    low, high = (match(torch.log(torch.where(none, 1.0, w)), x) for w in (small, large))
    std = torch.exp(0.5 * (v + 1.0) * high + 0.5 * (1.0 - v) * low)
    return torch.where(match(none, x).bool(), torch.zeros_like(std), std)
