"""Euler-Maruyama with a free noise level: one model, a family of samplers with the same marginals.

For any ``eps(t) >= 0`` the reverse-time SDE ``dx = (velocity - eps score) dt + sqrt(2 eps) dW`` has the marginals of
the probability-flow ODE (Song 2021, app. D; Albergo 2023, cor. 18). ``eps = g^2 / 2`` is the reverse of the forward
SDE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight
from condiff.process.level import Level
from condiff.sampling.solvers.linear import Linear, Weights

SCALES = ("process", "sigma", "constant")


@dataclass(frozen=True)
class SDE(Linear):
    """``x_s = x_t + (s - t) (velocity - eps score) + sqrt(2 eps (t - s)) z``. Weak order 1.

    Args:
        noise: level of fresh noise, 0 for the ODE.
        scale: what it is relative to: ``"process"``, ``eps = noise g^2 / 2`` (1 is the reverse SDE); ``"sigma"``,
            ``eps = noise noise(t)`` (finite at both ends of any path); ``"constant"``, ``eps = noise``.

    The ends: a step to a noise-free level returns ``data x0 + source y`` and adds nothing. Where eps or the score is
    infinite (g at data(t) = 0, the score at noise(t) = 0) the step forgets ``z`` and draws it anew, which is the
    limit of the exact solution. Upwards it follows the ODE.

    :class:`DPMSolverPP` with ``noise`` solves the same SDE exactly in its linear part: prefer it where g varies
    strongly.
    """

    noise: float = 1.0
    scale: str = "process"

    def __post_init__(self) -> None:
        if not self.noise >= 0.0:
            raise BadValue(f"noise must be >= 0, got {self.noise}")
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)

    @property
    def stochastic(self) -> bool:
        return self.noise > 0.0

    def _epsilon(self, t: Level) -> Weight:
        """eps at t; some positive number where it doesn't exist, at the noise-free end of a path to an endpoint."""
        if self.noise == 0.0:
            return 0.0 * t.t
        if not t.process.noise_law.gaussian:
            raise Incompatible(f"SDE follows a score, which {t.process} hasn't: use Euler() or DDIM()")
        if self.scale != "process":
            return self.noise * (t.noise if self.scale == "sigma" else 1.0) + 0.0 * t.t
        process, bare = t.process, t.noise == 0.0
        g2 = process.diffusion2(
            process.at(torch.where(bare, 0.5, t.t) if isinstance(bare, Tensor) else 0.5 if bare else t)
        )
        if _any(g2 < -1e-9):
            raise Incompatible(
                f"SDE(scale='process') needs g^2 >= 0, but {process} has g^2 = {g2} at t = {t.t}: "
                "use scale='sigma' or scale='constant'"
            )
        return 0.5 * self.noise * algebra.where(g2 > 0.0, g2, 0.0)

    def weights(self, t: Level, s: Level) -> Weights:
        dt = s.t - t.t
        epsilon = algebra.where(dt < 0.0, self._epsilon(t), 0.0)
        pull = algebra.divide(epsilon, t.noise)  # -eps score = pull z
        plain = (
            t.data + dt * t.d_data,
            t.noise + dt * (t.d_noise + pull),
            t.source + dt * t.d_source,
            algebra.sqrt(-2.0 * epsilon * dt),
        )
        anew = (dt < 0.0) & (self.noise > 0.0)
        end = (s.data, algebra.where(anew, 0.0, s.noise), s.source, algebra.where(anew, s.noise, 0.0))
        at_end = (s.noise == 0.0) | (t.noise == 0.0) | (pull == math.inf)
        return Weights(*(algebra.where(at_end, e, p) for e, p in zip(end, plain, strict=True)))


def _any(condition) -> bool:
    return bool(torch.as_tensor(condition).any())
