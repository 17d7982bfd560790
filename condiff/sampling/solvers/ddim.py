"""DDIM: Song, Meng & Ermon 2021, eq. 12, with eta between 0 (deterministic) and 1 (ancestral variance)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from condiff.errors import BadValue, Incompatible
from condiff.process import algebra
from condiff.process.level import Level
from condiff.sampling.solvers.linear import Linear, Weights


@dataclass(frozen=True)
class DDIM(Linear):
    """``x_s = data_s x0 + source_s y + sqrt(noise_s^2 - std^2) noise + std z``.

    ``std = eta std(x_s | x_t, x0)``. First order; exact for data at a single point, and on any linear-Gaussian
    process with an endpoint.

    The same step has other names: with eta = 0 it is Euler's method in ``sigma = noise / data`` (EDM, k-diffusion) and
    DPM-Solver-1; with eta = 1 it is ancestral DDPM with the posterior variance and k-diffusion's "Euler ancestral".
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not self.eta >= 0.0:
            raise BadValue(f"eta must be >= 0, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    @property
    def relative_noise(self) -> float:
        return self.eta**2

    def weights(self, t: Level, s: Level) -> Weights:
        std = self.eta * t.process.posterior_std(t, s) if self.eta else 0.0
        return Weights(s.data, algebra.sqrt(s.noise * s.noise - std * std), s.source, std)


@dataclass(frozen=True)
class Overshoot(Linear):
    """A DDIM step of two levels at once, then one level back up by fresh noise (Meng 2023, section 3.3).

    From t the step goes past s to the level r behind it, and ``x_s`` is drawn from the forward kernel:
    ``x_s = data_s x0 + (data_s / data_r) noise_r noise + std(x_s | x_r) z``. The last step is a plain one. Fresh noise
    makes up for the errors of distilled networks; with exact denoisers and few steps the samples spread too little.
    """

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def relative_noise(self) -> float:
        return 1.0  # two steps of the ODE and one back with the kernel's noise

    def weights(self, t: Level, s: Level) -> Weights:
        return Weights(s.data, s.noise, s.source, 0.0)

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        """
        Raises:
            Incompatible: a grid that goes up; a process without transition kernels.
        """
        if any(not algebra.holds(s.t <= t.t) for t, s in itertools.pairwise(levels)):
            raise Incompatible("Overshoot looks a level ahead, on grids that go down")
        past = [self._past(s, r) for s, r in itertools.pairwise(levels[1:])]
        return [*past, self.weights(levels[-2], levels[-1])]

    @staticmethod
    def _past(s: Level, r: Level) -> Weights:
        ratio, std = s.process.kernel(r, s)
        return Weights(s.data, ratio * r.noise, s.source, std)


@dataclass(frozen=True)
class Consistency(Linear):
    """``x_s = data_s x0 + source_s y + noise_s z``: denoise, then noise afresh.

    Multistep sampling of consistency models (Song 2023, alg. 1), LCM and stream batches; on a rectified path the
    "stochastic sampling" of flow-matching schedulers. With a denoiser that returns ``E[x0 | x_t]``, not the end of the
    path through x_t, it doesn't converge to the data's law, however many the steps.

    Args:
        renoise: with False no noise is added, ``x_s = data_s x0 + source_s y``: StreamDiffusion without
            ``do_add_noise``, whose states have less noise than their times say.
    """

    renoise: bool = True

    @property
    def stochastic(self) -> bool:
        return self.renoise

    def weights(self, t: Level, s: Level) -> Weights:
        return Weights(s.data, 0.0, s.source, s.noise if self.renoise else 0.0)
