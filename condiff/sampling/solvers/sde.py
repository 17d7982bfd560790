"""Euler-Maruyama with a free noise level: one model, a family of samplers with the same marginals.

For any ``eps(t) >= 0`` the SDE ``dx = (velocity + eps score) dt + sqrt(2 eps) dW`` from data to noise and, in reversed
time, ``dx = (velocity - eps score) dt + sqrt(2 eps) dW`` have the marginals of the probability-flow ODE (Song 2021,
app. D; Albergo 2023, cor. 18). ``eps = g^2 / 2`` are the forward SDE and its reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process import algebra
from condiff.process.algebra import Weight
from condiff.process.level import Level
from condiff.sampling.solvers.linear import Linear, Weights

SCALES = ("process", "sigma", "constant")


@dataclass(frozen=True)
class SDE(Linear):
    """``x_s = x_t + (s - t) velocity + |s - t| eps score + sqrt(2 eps |s - t|) z``. Weak order 1.

    Args:
        noise: level of fresh noise, 0 for the ODE; a number, or a function of the :class:`~condiff.process.Level`.
        scale: what it is relative to: ``"process"``, ``eps = noise g^2 / 2`` (1 is the reverse SDE); ``"sigma"``,
            ``eps = noise noise(t)`` (finite at both ends of any path); ``"constant"``, ``eps = noise``.

    Steps to more noise draw from the process's kernel unless ``up="integrate"`` asks for this rule, which for an
    interpolant leads from data to its endpoint.

    The ends: a step to a noise-free level returns ``data x0 + source y`` and adds nothing. Where eps or the score is
    infinite (g at data(t) = 0, the score at noise(t) = 0) the step forgets ``z`` and draws it anew, which is the
    limit of the exact solution.

    :class:`DPMSolverPP` with ``noise`` solves the same SDE exactly in its linear part: prefer it where g varies
    strongly.
    """

    noise: float | Callable[[Level], Weight] = 1.0
    scale: str = "process"

    def __post_init__(self) -> None:
        if not callable(self.noise):
            if isinstance(self.noise, bool) or not isinstance(self.noise, int | float):
                raise BadType(f"noise takes a number, or a function of the level, got {self.noise!r}")
            if not 0.0 <= self.noise < math.inf:
                raise BadValue(f"noise must be finite and >= 0, got {self.noise}")
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)

    @property
    def stochastic(self) -> bool:
        return callable(self.noise) or self.noise > 0.0

    @property
    def relative_noise(self) -> float | None:
        if not self.stochastic:
            return 0.0
        return None if self.scale != "process" or callable(self.noise) else self.noise

    def _amount(self, t: Level) -> Weight:
        """``noise`` at t."""
        if not callable(self.noise):
            return self.noise
        amount = self.noise(t)
        if _any(~(torch.as_tensor(amount) >= 0.0)):
            raise BadValue(f"noise must be >= 0 at every level, got {amount} at t = {t.t}")
        return amount

    def epsilon(self, t: Level) -> Weight:
        """``eps(t)``; some positive number where it doesn't exist, at the noise-free end of a path to an endpoint."""
        if not self.stochastic:
            return 0.0 * t.t
        noise = self._amount(t)
        if not t.process.noise_law.gaussian:
            raise Incompatible(f"SDE follows a score, which {t.process} hasn't: use Euler() or DDIM()")
        if self.scale != "process":
            return noise * (t.noise if self.scale == "sigma" else 1.0) + 0.0 * t.t
        process, bare = t.process, t.noise == 0.0
        g2 = process.diffusion2(
            process.at(torch.where(bare, 0.5, t.t) if isinstance(bare, Tensor) else 0.5 if bare else t)
        )
        if _any(g2 < -1e-9):
            raise Incompatible(
                f"SDE(scale='process') needs g^2 >= 0, but {process} has g^2 = {g2} at t = {t.t}: "
                "use scale='sigma' or scale='constant'"
            )
        return 0.5 * noise * algebra.where(g2 > 0.0, g2, 0.0)

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        first, last = levels[0], levels[-1]
        middle = first.process.at(0.5 * (first.t + last.t))
        if self.stochastic and not _any(torch.as_tensor(middle.noise) != 0.0) and not _any(first.t == last.t):
            raise Incompatible(f"SDE follows a score, and {first.process} has no noise to have one: use Euler()")
        return super().plan(levels)

    def weights(self, t: Level, s: Level) -> Weights:
        dt = s.t - t.t
        epsilon = algebra.where(dt != 0.0, self.epsilon(t), 0.0)
        pull = algebra.divide(epsilon, t.noise)  # -eps score = pull z
        plain = (
            t.data + dt * t.d_data,
            t.noise + dt * t.d_noise - abs(dt) * pull,
            t.source + dt * t.d_source,
            algebra.sqrt(2.0 * epsilon * abs(dt)),
        )
        anew = (dt != 0.0) & (self._amount(t) > 0.0)
        end = (s.data, algebra.where(anew, 0.0, s.noise), s.source, algebra.where(anew, s.noise, 0.0))
        at_end = (s.noise == 0.0) | (t.noise == 0.0) | (pull == math.inf)
        return Weights(*(algebra.where(at_end, e, p) for e, p in zip(end, plain, strict=True)))


def _any(condition) -> bool:
    return bool(torch.as_tensor(condition).any())
