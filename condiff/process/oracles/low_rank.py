"""Gaussian data of any dimension by its principal components: the exact denoiser in O(rank x dimensions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import Degenerate
from condiff.process.algebra import Weight
from condiff.process.gaussian import Process
from condiff.process.level import Time
from condiff.process.oracles.components import vanishes
from condiff.process.prediction import Prediction
from condiff.process.principal_law import PrincipalLaw, Spread, check_path


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """The denoiser of a :class:`~condiff.process.PrincipalLaw`. Made by :func:`low_rank`.

    With ``V = data^2 v + noise^2`` along a component: ``E[x0] = mean + data v / V (...)``, ``E[z] = noise / V (...)``,
    ``score = -1 / V (...)``, (...) the part of ``x_t - data mean`` along it.
    """

    process: Process
    law: PrincipalLaw

    @property
    def shape(self) -> tuple[int, ...]:
        return self.law.shape

    @property
    def kinds(self) -> dict[str, str]:
        return {}

    def __call__(self, x_t: Tensor, t: Time, cond: Mapping[str, Any] | None = None) -> Prediction:
        """E[x0 | x_t] and E[z | x_t], at both ends of time too."""
        self.law.check_state(x_t)
        level, law = self.process.at(t), self.law.to(x_t.device)
        away, (along, rest) = law.away(x_t, level), law.spread(level)
        a, s = (_rows(w, away) for w in (level.data, level.noise))
        x0 = law.scaled(away, (_ratio(a * law.variances, along), _ratio(a * law.residual, rest)))
        noise = law.scaled(away, (_ratio(s, along), _ratio(s, rest)))
        x0 = x0 + law.mean.to(x0).flatten()
        return Prediction(x_t, level, {"x0": x0.reshape(x_t.shape), "noise": noise.reshape(x_t.shape)})

    def score(self, x_t: Tensor, t: Time, cond: Mapping[str, Any] | None = None) -> Tensor:
        """``grad log p_t(x_t)``; also at t = 0, where every direction has variance.

        Raises:
            Degenerate: a level without noise, and directions without variance.
        """
        self.law.check_state(x_t)
        level, law = self.process.at(t), self.law.to(x_t.device)
        singular = bool((law.variances == 0.0).any()) or (law.rank < law.dims and law.residual == 0.0)
        if vanishes(level.noise) and singular:
            raise Degenerate(
                f"these data have no density at noise(t) = 0, t = {level.t}: no variance in some direction"
            )
        along, rest = law.spread(level)
        inverse: Spread = (-1.0 / along, _ratio(-1.0, rest))
        return law.scaled(law.away(x_t, level), inverse).reshape(x_t.shape)

    def __repr__(self) -> str:
        return f"LowRank({self.law}, process={self.process})"


def _rows(w: Weight, like: Tensor) -> Weight:
    return w.reshape(-1, 1).to(like.device) if isinstance(w, Tensor) and w.ndim else w


def _ratio(a: Any, b: Any) -> Any:
    """``a / b``, 0 where b is: a direction without variance holds nothing to learn."""
    if not isinstance(b, Tensor):
        return a / b if b != 0.0 else 0.0 * a
    return torch.where(b > 0.0, a / torch.where(b > 0.0, b, 1.0), 0.0)


def low_rank(process: Process, law: PrincipalLaw) -> LowRank:
    """The oracle of Gaussian data given by principal components: :func:`gaussian` for images.

    Raises:
        Incompatible: a process with an endpoint, or noise that isn't Gaussian.
    """
    check_path(process)
    return LowRank(process, law)
