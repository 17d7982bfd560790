"""Driven: a chain into which the data is fed, a share at every step (Chen 2024, arXiv 2407.17571).

The state isn't noised data but a latent, ``z_0 = 0``, that a *drive* E pushes about, while it forgets and is noised as
in DDPM. With alpha_i = 1 - beta_i of step i, ``a_i = sqrt(alpha_1 ... alpha_i)`` and weights w_i::

    z_i = sqrt(alpha_i) (z_{i-1} + w_i E) + sqrt(1 - alpha_i) n
    z_i | E  ~  N(c_i E, 1 - a_i^2),      c_i = a_i sum_{j <= i} w_j / a_{j-1} = sqrt(alpha_i) (c_{i-1} + w_i)

so that E is what the library calls x0, and ``data(t) = c``. The posterior has two coefficients on E and one on z,
``q(z_s | z_t, E) = N(c_s E + rho (z_t - c_t E), v)`` with ``rho = (a_t / a_s) noise_s^2 / noise_t^2``, which is the
one that every :class:`~condiff.process.Process` has, with ``ratio = a_t / a_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible
from condiff.process import algebra
from condiff.process.algebra import Weight
from condiff.process.gaussian import Curves, Process, evaluate
from condiff.process.level import Level
from condiff.process.noise import NoiseLaw, Normal
from condiff.process.table import Discrete

_MOST = 1e-9  # relative rise of the signal-to-noise ratio that is round-off


@dataclass(frozen=True, kw_only=True)
class Driven(Process):
    """``z_t = c(t) E + a(t) y + noise(t) z`` on a table of steps, E fed in by weights; t = i / N after step i.

    The first step's weight is what z_1 sees, and t = 0 is the drive itself, as t = 0 is the data elsewhere: samplers
    end in the predicted E. (The chain's own z_0 is a point, at which there is nothing to decide.) With the default,
    everything at the first step, ``c = a`` and this is DDPM on ``x0 = E``. Between two steps the sum of weights is
    linear in t. The chain's first step isn't a small one: rules that integrate a velocity (Euler, Runge-Kutta, ...)
    want a grid that ends at :attr:`first`.

    Later weights feed information in progressively, but what z_1 doesn't know can't be decoded from it: see
    :attr:`decodable`.

    Args:
        schedule: the table of alphas.
        drive: w_1, w_2, ...; those not listed are 0.
        start: the chain begins at ``z_0 = y``, an endpoint, in place of 0.

    Raises:
        BadValue: more weights than steps, weights that sum to 0 at some step or change the sign of c.
    """

    schedule: Discrete
    drive: tuple[float, ...] = (1.0,)
    start: bool = False
    noise_law: NoiseLaw = field(default_factory=Normal)
    _sums: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Discrete):
            raise BadType(f"a driven chain has steps: schedule= takes a Discrete table, got {self.schedule!r}")
        drive = tuple(float(w) for w in self.drive)
        object.__setattr__(self, "drive", drive)
        if not drive or len(drive) > self.schedule.steps:
            raise BadValue(f"drive= lists 1 to {self.schedule.steps} weights, one a step, got {len(drive)}")
        if not all(math.isfinite(w) for w in drive) or not any(drive):
            raise BadValue("the weights of a drive are finite numbers that aren't all 0: nothing would be fed in")
        if not self.noise_law.gaussian:
            raise Incompatible(
                f"a driven chain adds its noise up step by step: it must be normal, not {self.noise_law}"
            )
        sums = self._summed(drive)
        if bool((sums < 0.0).any()):
            raise BadValue(f"the sums of a drive's weights must be >= 0 at every step, got {float(sums.min()):.4g}")
        self._sums[sums.device] = sums

    def _summed(self, drive: tuple[float, ...]) -> Tensor:
        """``sum_{j <= i} w_j / a_{j-1}`` at the nodes i = 0 ... N, (N + 1,); that of t = 0, the drive itself, is 1."""
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.schedule.table.sqrt()])[: len(drive)]
        sums = torch.cumsum(torch.tensor(drive, dtype=torch.float64) / before, 0)
        later = sums[-1:].expand(self.schedule.steps - len(drive))
        return torch.cat([torch.ones(1, dtype=torch.float64), sums, later])

    @property
    def first(self) -> float:
        """The time of z_1, from which the data is decoded."""
        return 1.0 / self.schedule.steps

    @property
    def decodable(self) -> bool:
        """Whether z_1 knows most: ``c_i > 0`` everywhere, with a signal-to-noise ratio that falls at every step, from
        more than 1 at the first.

        Otherwise some of E enters later than z_1 and is lost again on the way down, or lies below the noise of z_1.
        """
        times = torch.arange(1, self.schedule.steps + 1, dtype=torch.float64) / self.schedule.steps
        snr = (self.schedule.alpha(times) * self._on(times)[1:] / self.schedule.sigma(times)) ** 2
        falls = snr.diff() <= _MOST * snr[:-1]
        return bool((self._on(times)[1:] > 0.0).all()) and bool(falls.all()) and bool(snr[0] > 1.0)

    @property
    def has_source(self) -> bool:
        return self.start

    def _on(self, t: Tensor) -> Tensor:
        if t.device not in self._sums:
            self._sums[t.device] = self._sums[torch.device("cpu")].to(t.device)
        return self._sums[t.device]

    def _line(self, t: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Values and slopes of the line through the nodes; a node belongs to the piece before it."""
        steps = self.schedule.steps
        place = self.schedule.model_time(t) + 1.0
        left = (torch.ceil(place.detach()) - 1.0).clamp(0, steps - 1).long()
        rise = nodes[left + 1] - nodes[left]
        # from the right, so that a node's value is its own to the last bit
        return nodes[left + 1] - (left + 1 - place) * rise, rise * steps

    def curves(self, t: Tensor) -> Curves:
        alpha, d_alpha = self.schedule.alpha(t), self.schedule.d_alpha(t)
        (total, d_total), zero = self._line(t, self._on(t)), torch.zeros_like(t)
        data, d_data = alpha * total, d_alpha * total + alpha * d_total
        noise, d_noise = self.schedule.sigma(t), self.schedule.d_sigma(t)
        if not self.start:
            return data, zero, noise, d_data, zero, d_noise
        there = torch.ones_like(self._on(t))
        there[0] = 0.0  # t = 0 is the drive alone
        share, d_share = self._line(t, there)
        return data, alpha * share, noise, d_data, d_alpha * share + alpha * d_share, d_noise

    def model_time(self, t: Tensor) -> Tensor:
        return self.schedule.model_time(t)

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(t)

    def time(self, log_snr: Tensor) -> Tensor:
        if self.drive[0] == 1.0 and not any(self.drive[1:]):
            return self.schedule.time(log_snr)
        return super().time(log_snr)

    def _alpha(self, level: Level) -> Weight:
        return evaluate(self.schedule.alpha, level.t)

    def ratio(self, s: Level, t: Level) -> Weight:
        """``a_t / a_s``: what is left of ``z_s``, whatever was fed in since."""
        return algebra.divide(self._alpha(t), self._alpha(s))

    def drift(self, level: Level) -> Weight:
        return algebra.divide(evaluate(self.schedule.d_alpha, level.t), self._alpha(level))

    def noise_d_noise(self, level: Level) -> Weight:
        return evaluate(self.schedule.sigma_d_sigma, level.t)
