"""Kinetic energy of a path, and the path of least energy for given data (Shaul et al. 2023, arXiv 2306.06626).

``x_t = alpha x0 + sigma z`` moves with the marginal velocity ``u = E[d_alpha x0 + d_sigma z | x_t]``. For centred data
with ``q = E|x0|^2 / D``, everything about them that matters is the separation ``lambda(s)``, ``s = alpha / sigma``:

    lambda(s) = E|E[x0 | s x0 + z]|^2 / (q D) = 1 - mmse(s) / (q D)
    energy = 1/D int_0^1 E|u|^2 dt
           = int_0^1 q d_alpha^2 + d_sigma^2 - q (1 - lambda) (d_alpha - alpha d_sigma / sigma)^2 dt

In polar coordinates, ``sqrt(q) alpha = r sin th``, ``sigma = r cos th``, this is ``int r'^2 + r^2 h(th) th'^2 dt`` with

    h(th) = 1 - (1 - lambda) (1 + tan(th)^2) in [0, 1],       phi(th) = int_0^th sqrt(h),       Phi = phi(pi/2)

the energy of a curve in the plane with polar coordinates (r, phi). The least one is that of the straight line, from the
data (radius sqrt(q), angle Phi) to the noise (radius 1, angle 0), walked at constant speed:

    zeta(t) = t + (1 - t) sqrt(q) exp(i Phi),        energy = 1 + q - 2 sqrt(q) cos Phi

``lambda = 1`` (points far apart) gives ``Phi = pi/2`` and, for q = 1, the rectified path; standard normal data give
Phi = 0 and no energy at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from condiff.errors import BadValue
from condiff.process.schedule import Cosine, Rectified, Schedule
from condiff.process.tabulated import Tabulated, monotone_curve
from condiff.typing import Float, Tensor

FLOOR = 1e-4  # of sqrt(h), where the angle is worked out from phi: no motion at all leaves the angle open
HALF_PI = 0.5 * math.pi
ENDS = 24  # more nodes at each end of a table, where alpha may have an infinite slope


@dataclass(frozen=True, kw_only=True)
class Separation:
    """The separation function of data, as a table over the signal-to-noise root.

    Args:
        roots: ``s sqrt(q)``, the root for data scaled to unit power; rising, > 0.
        mmse: ``1 - lambda`` there: the least mean square error of x0, over its variance; in [0, 1], falling.
        end: h where the noise vanishes: 1 for a finite set of points, ``1 - (intrinsic dimension) / D`` for a density.
        start: h where the signal vanishes: 0 for all data, 1 in the limit of points that are infinitely far apart.
        power: q, the variance of the data per entry.
        of: what was measured, in words: "points" memorise themselves, a "model" speaks for the population.

    Between the table's entries, and towards its ends, sqrt(h) is a monotone cubic of the angle. Where a table breaks
    ``lambda >= s^2 / (1 + s^2)``, which every data obey, h counts as 0.

    Raises:
        BadValue: tables of different lengths, roots that don't rise, errors that rise or lie outside [0, 1], q <= 0.
    """

    roots: tuple[float, ...]
    mmse: tuple[float, ...]
    end: float = 1.0
    start: float = 0.0
    power: float = 1.0
    of: str = "points"

    def __post_init__(self) -> None:
        for name in ("roots", "mmse"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        roots, mmse = self.roots, self.mmse
        if len(roots) != len(mmse) or len(roots) < 2 or not all(map(math.isfinite, (*roots, *mmse))):
            raise BadValue(
                f"a table of at least two finite roots and errors is needed, got {len(roots)} and {len(mmse)}"
            )
        if not (roots[0] > 0.0 and all(a < b for a, b in pairwise(roots))):
            raise BadValue(f"roots must rise from above 0, got {roots[0]} .. {roots[-1]}")
        if not (min(mmse) >= 0.0 and max(mmse) <= 1.0 and all(a >= b for a, b in pairwise(mmse))):
            raise BadValue("the mean square errors, relative to the variance, must fall within [0, 1]")
        if not (0.0 <= self.end <= 1.0 and 0.0 <= self.start <= 1.0):
            raise BadValue(f"start and end are values of h, in [0, 1], got {self.start} and {self.end}")
        if not 0.0 < self.power < math.inf:
            raise BadValue(f"the power q of the data must be positive and finite, got {self.power}")

    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Angles and sqrt(h) there; ``1 + s^2`` times the error, not a difference of numbers near 1."""
        s = torch.tensor(self.roots, dtype=torch.float64)
        h = (1.0 - torch.tensor(self.mmse, dtype=torch.float64) * (1.0 + s * s)).clamp(0.0, 1.0)
        ends = torch.tensor([0.0, HALF_PI, self.start, self.end], dtype=torch.float64)
        return torch.cat([ends[:1], torch.atan(s), ends[1:2]]), torch.cat([ends[2:3], h, ends[3:]]).sqrt()

    def root_h(self, angle: Tensor) -> Tensor:
        """``sqrt(h)`` at angles in [0, pi/2], float64."""
        return monotone_curve(*self._nodes()).value(angle)

    def phi(self, angle: Tensor) -> Tensor:
        """``int_0^angle sqrt(h)``, float64."""
        return monotone_curve(*self._nodes()).integral(angle)

    def separation(self, root: Float[Tensor, "*roots"]) -> Float[Tensor, "*roots"]:
        """``lambda`` at roots ``s sqrt(q)`` of data scaled to unit power."""
        h = self.root_h(torch.atan(root)) ** 2
        return 1.0 - (1.0 - h) / (1.0 + root * root)

    @property
    def angle(self) -> float:
        """Phi, between 0 (Gaussian data) and pi/2 (points far apart)."""
        return float(self.phi(torch.tensor(HALF_PI, dtype=torch.float64)))

    @property
    def least_energy(self) -> float:
        """The kinetic energy per dimension that no path goes below."""
        root = math.sqrt(self.power)
        return (1.0 - root) ** 2 + 4.0 * root * math.sin(0.5 * self.angle) ** 2


def kinetic_optimal(separation: Separation, nodes: int = 129) -> Tabulated:
    """The schedule of least kinetic energy for data of the given separation, as a table.

    With ``phi = phi(th)`` the line is at ``r = sqrt(q) sin Phi / (sin phi + sqrt(q) sin(Phi - phi))`` and at the time
    ``1 - t = sin phi / (sin phi + sqrt(q) sin(Phi - phi))``, so nothing is inverted. Where h = 0, the data move for
    free, and alpha may rise with infinite slope at t = 1: nodes are even in the mean of angle and phi.

    Args:
        separation: of the data.
        nodes: entries of the table.

    Example:
        >>> process = Gaussian(kinetic_optimal(points_separation(data)))
    """
    if nodes < 8:
        raise BadValue(f"a table needs at least 8 nodes, got {nodes}")
    angle = _angles(separation, nodes)
    # Where the data move for free any angle is as good: a little phi everywhere makes it rise with the angle.
    lifted = separation.phi(angle) + FLOOR * angle
    d_angle = lifted[-1] / (separation.root_h(angle) + FLOOR)
    end, total, f = math.sqrt(separation.power), separation.angle, lifted / lifted[-1]  # end: the radius of the data
    far, near = _sine(f, total), end * _sine(1.0 - f, total)
    d_far, d_near, norm = torch.cos(f * total), -end * torch.cos((1.0 - f) * total), far + near
    t, d_t = near / norm, (d_near * far - near * d_far) / norm**2
    r = end * _sine(torch.ones_like(f[:1]), total) / norm
    d_r = -r * (d_far + d_near) / norm
    sin, cos = torch.sin(angle), torch.cos(angle)
    curves = (
        t,
        r * sin / end,
        r * cos,
        (d_r * sin + r * cos * d_angle) / (end * d_t),
        (d_r * cos - r * sin * d_angle) / d_t,
    )
    return _table(*(x.flip(0) for x in curves))


def _angles(separation: Separation, nodes: int) -> Tensor:
    """Angles from 0 to pi/2, even in the mean of angle and phi, and closer and closer towards both ends."""
    fine = torch.linspace(0.0, HALF_PI, 8193, dtype=torch.float64)
    phi = separation.phi(fine) + FLOOR * fine
    even = torch.linspace(0.0, 1.0, nodes, dtype=torch.float64)
    angle = _interpolated(even, 0.5 * (phi / phi[-1] + fine / HALF_PI), fine)
    closer = 0.7 ** torch.arange(1, ENDS + 1, dtype=torch.float64)
    first, last = angle[1], HALF_PI - angle[-2]
    return torch.cat([angle, first * closer, HALF_PI - last * closer]).unique()


def _table(t: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor) -> Tabulated:
    """The table from t = 0 to 1, without times that are too close, its slopes limited so that no overshoot arises."""
    keep = torch.cat([torch.tensor([True]), t[1:-1].diff(prepend=t[:1]) > 1e-9, torch.tensor([True])])
    keep[1:-1] &= t[1:-1] < 1.0 - 1e-9
    t, alpha, sigma, d_alpha, d_sigma = (x[keep] for x in (t, alpha, sigma, d_alpha, d_sigma))
    for x, first, last in ((t, 0.0, 1.0), (alpha, 1.0, 0.0), (sigma, 0.0, 1.0)):
        x[0], x[-1] = first, last  # exactly
    return Tabulated(
        times=tuple(t.tolist()),
        alphas=tuple(alpha.tolist()),
        sigmas=tuple(sigma.tolist()),
        d_alphas=tuple(_limited(t, alpha, d_alpha).tolist()),
        d_sigmas=tuple(_limited(t, sigma, d_sigma).tolist()),
    )


def _limited(t: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """At most three times the smaller secant beside each node, where both have one sign (Fritsch & Carlson 1980)."""
    secant = values.diff() / t.diff()
    before, after = torch.cat([secant[:1], secant]), torch.cat([secant, secant[-1:]])
    most = torch.where(before * after > 0.0, 3.0 * torch.minimum(before.abs(), after.abs()), slopes.abs())
    return torch.maximum(torch.minimum(slopes, most), -most)


def _sine(share: Tensor, angle: float) -> Tensor:
    """``sin(share angle) / angle``, and its limit at angle 0."""
    return share * torch.sinc(share * angle / math.pi)


def _interpolated(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear, for rising xs."""
    k = (torch.searchsorted(xs, x.contiguous()) - 1).clamp(0, len(xs) - 2)
    u = ((x - xs[k]) / (xs[k + 1] - xs[k])).clamp(0.0, 1.0)
    return ys[k] + u * (ys[k + 1] - ys[k])


def kinetic_energy(schedule: Schedule, separation: Separation, parts: int = 20000) -> float:
    """``1/D int E|u|^2 dt`` of a schedule's path for data of the given separation; inf where it diverges.

    As the length of the curve in the plane: ``sum |zeta_{k+1} - zeta_k|^2 / (t_{k+1} - t_k)`` over a fine partition,
    which never exceeds the energy and needs no derivative. Variance-preserving schedules whose variance starts
    linearly (VPLinear) have infinite energy on points: their velocity at t = 0 isn't square integrable.

    Raises:
        BadValue: a schedule that doesn't go from the data alone to unit noise alone.
    """
    if parts < 16:
        raise BadValue(f"the partition needs at least 16 parts, got {parts}")
    check_ends(schedule)
    even = torch.linspace(0.0, 1.0, parts + 1, dtype=torch.float64)
    small = torch.logspace(-12, math.log10(1.0 / parts), 64, dtype=torch.float64)
    times = torch.cat([even, small, 1.0 - small]).unique()
    for end in (0.0, 1.0):
        near, nearer = (_energy(schedule, separation, _step(end, size)) for size in (1e-8, 1e-10))
        if near > 1e-7 and nearer > 0.5 * near:
            return math.inf
    return _energy(schedule, separation, times)


def check_ends(schedule: Schedule) -> None:
    """
    Raises:
        BadValue: a schedule that doesn't go from the data alone to noise alone.
    """
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    (a0, a1), (s0, s1) = schedule.alpha(ends).tolist(), schedule.sigma(ends).tolist()
    if not (abs(a0 - 1.0) < 1e-6 and abs(s0) < 1e-3 and abs(a1) < 1e-2 and abs(s1 - 1.0) < 1e-2):
        raise BadValue(
            f"energies are of paths from the data (alpha = 1, sigma = 0) to unit noise (0, 1); {schedule} goes from "
            f"({a0:.6g}, {s0:.6g}) to ({a1:.6g}, {s1:.6g})"
        )


def _step(end: float, size: float) -> Tensor:
    return torch.tensor([end, abs(end - size)], dtype=torch.float64).sort().values


def _energy(schedule: Schedule, separation: Separation, times: Tensor) -> float:
    a, s = schedule.alpha(times) * math.sqrt(separation.power), schedule.sigma(times)
    r, phi = torch.hypot(a, s), separation.phi(torch.atan2(a, s))
    # |r_1 e^{i p_1} - r_0 e^{i p_0}|^2, written without cancellation
    moved = r.diff() ** 2 + 4.0 * r[:-1] * r[1:] * torch.sin(0.5 * phi.diff()) ** 2
    return float((moved / times.diff()).sum())


@dataclass(frozen=True, kw_only=True)
class KineticReport:
    """Kinetic energies of schedules on one data set, beside the least one.

    Args:
        separation: of the data.
        energies: name -> energy per dimension.
    """

    separation: Separation
    energies: Mapping[str, float]

    @property
    def least(self) -> float:
        return self.separation.least_energy

    def excess(self, name: str) -> float:
        """By how much a schedule lies above the optimum, relative to it; inf where the optimum is 0."""
        above = self.energies[name] - self.least
        return above / self.least if self.least > 0.0 else (math.inf if above > 0.0 else 0.0)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "measured_on": self.separation.of,
            "power": self.separation.power,
            "angle": self.separation.angle,
            "angle_share": self.separation.angle / HALF_PI,
            "least_energy": self.least,
            "energies": {k: v if math.isfinite(v) else None for k, v in self.energies.items()},
        }

    def table(self) -> str:
        """As text: the angle, what it means, and a line a schedule."""
        share = self.separation.angle / HALF_PI
        lines = [
            f"variance per entry  {self.separation.power:.4g}  (centred data; measured on: {self.separation.of})",
            f"angle Phi           {self.separation.angle:.4f}  ({share:.0%} of pi/2: 0 is one Gaussian, pi/2 "
            "are points far apart, where the straight path is best)",
            "",
            f"{'schedule':<28}{'kinetic energy':>16}{'above the least':>18}",
            f"{'kinetic-optimal':<28}{self.least:>16.4f}{'':>18}",
        ]
        for name, energy in self.energies.items():
            lines.append(f"{name:<28}{energy:>16.4f}{self.excess(name):>18.1%}")
        return "\n".join(lines)


STANDARD = {"rectified": Rectified(), "cosine": Cosine()}


def kinetic_report(separation: Separation, schedules: Mapping[str, Schedule] | None = None) -> KineticReport:
    """The energies of schedules for given data: the straight and the trigonometric one unless others are given."""
    chosen = STANDARD if schedules is None else schedules
    return KineticReport(
        separation=separation, energies={name: kinetic_energy(one, separation) for name, one in chosen.items()}
    )


def straight_sigmas(schedule: Schedule, times: Sequence[float] | Tensor) -> Tensor:
    """``sigma / (alpha + sigma)`` at times: where the same signal-to-noise ratio lies on the straight path.

    A model of the straight path is sampled along this schedule with these as its noise levels (``sigmas=`` of
    diffusers' flow-matching schedulers); here, :class:`~condiff.process.Retimed` does it.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    return sigma / (alpha + sigma)
