"""Measuring the separation function: from a finite set of points, from any denoiser, from a curve of errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from condiff.errors import BadType, BadValue, unknown
from condiff.process.gaussian import Gaussian, Process
from condiff.process.kinetic import Separation
from condiff.process.oracles import empirical
from condiff.process.principal_law import check_path
from condiff.process.schedule import Cosine
from condiff.random import Source, as_source
from condiff.typing import Float, Tensor

LOWEST, HIGHEST, NODES = 1e-3, 30.0, 60  # of the table, in roots of data of unit power
MOST = 5000  # points of the softmax
ERRORS = ("x0", "noise")


def points_separation(
    x: Float[Tensor, "n *shape"],
    *,
    draws: int = 2000,
    roots: Sequence[float] | None = None,
    rng: int | torch.Generator | Sequence[int] | Source | None = 0,
) -> Separation:
    """The separation of a finite set of points, by the exact posterior over them.

    With n points in D dimensions it tends to 1 as n / sqrt(D) -> 0, also when they were drawn from a Gaussian: it is
    that of memorising these points. For the population behind them there are :func:`population_separation`, and
    :func:`model_separation` with a trained model.

    Args:
        x: points (n, *shape); of more than 5000, that many are taken at random.
        draws: noisy points at which the error is measured.
        roots: ``alpha / sigma`` for data of unit power; 60 from 0.001 to 30 by default.

    Raises:
        BadValue: fewer than two points, or all the same; NaN.
        BadType: integers.
    """
    rng = as_source(rng)
    x = _checked(x)
    if len(x) > MOST:
        x = x[torch.argsort(rng.uniform((len(x),)))[:MOST]]
    power, dims, of = _power(x), x[0].numel(), f"{len(x)} points"
    x = (x - x.mean(0)).double().flatten(1)
    if len(x) < dims:  # what noise does outside their span tells nothing about them
        u, values, _ = torch.linalg.svd(x, full_matrices=False)
        x = u * values
    path = Gaussian(Cosine())
    scaled = _reached(path, power, roots)
    errors = _errors(empirical(path, x), x, None, scaled, math.sqrt(power), draws, rng, batch=1024, exact=True)
    return from_mse_curve(scaled, (errors / (dims * power)).tolist(), end=1.0, power=power, of=of)


def population_separation(
    x: Float[Tensor, "n *shape"],
    *,
    draws: int = 1000,
    roots: Sequence[float] | None = None,
    widths: Sequence[float] = (0.0, 0.03, 0.1, 0.2, 0.4, 0.8),
    rng: int | torch.Generator | Sequence[int] | Source | None = 0,
) -> Separation:
    """The separation of the population behind some samples, without a model: an estimate from below.

    One half of the samples is smeared by Gaussians of several widths, and its exact posterior mean denoises the other
    half; the least error at each level, or that of a Gaussian, counts. Errors of any denoiser on samples that it hasn't
    seen are above the least one, so lambda is, if anything, too small.

    Args:
        x: samples (n, *shape), independent; of more than 10000, that many are taken at random.
        draws: noisy samples at each level.
        roots: as in :func:`points_separation`.
        widths: of the Gaussians, in deviations of the data.

    Raises:
        BadValue, BadType: as :func:`points_separation`; fewer than four samples; negative widths.
    """
    rng = as_source(rng)
    x = _checked(x)
    if len(x) < 4:
        raise BadValue(f"four samples or more are needed, got {len(x)}")
    if draws < 1:
        raise BadValue(f"draws must be at least 1, got {draws}")
    if not widths or min(widths) < 0.0:
        raise BadValue(f"widths are one number >= 0 or more, got {list(widths)}")
    x = x[torch.argsort(rng.uniform((len(x),)))[: 2 * MOST]]
    power, path, count = _power(x), Gaussian(Cosine()), len(x)
    scale = math.sqrt(power)
    scaled = _reached(path, power, roots, NODES // 2)
    x = ((x.double() - x.double().mean(0)) / scale).flatten(1)
    atoms, seen = empirical(path, x[::2]), x[1::2]
    seen = seen[torch.arange(draws) % len(seen)]
    noise = rng.normal(tuple(seen.shape), torch.float64)
    errors = [min(_smeared(atoms, seen, noise, root, width) for width in widths) for root in scaled]
    return from_mse_curve(scaled, errors, power=power, of=f"population of {count} samples")


def _smeared(atoms: Any, x: Tensor, noise: Tensor, root: float, width: float) -> float:
    """Mean square error per entry of the posterior mean of smeared atoms: that of points, at a lower root."""
    wider = math.sqrt(1.0 + (root * width) ** 2)
    level = atoms.process.at(float(atoms.process.time(torch.tensor(2.0 * math.log(root / wider), dtype=torch.float64))))
    y = root * x + noise
    centre = torch.cat([atoms(part, level).x0 for part in (y * (level.noise / wider)).split(1024)])
    said = centre + (root * (width / wider) ** 2) * (y - root * centre)
    return float((said - x).square().mean())


def model_separation(
    denoiser: Any,
    x: Float[Tensor, "n *shape"],
    cond: Mapping[str, Tensor] | None = None,
    *,
    draws: int = 1000,
    roots: Sequence[float] | None = None,
    end: float | None = None,
    power: float | None = None,
    rng: int | torch.Generator | Sequence[int] | Source | None = 0,
    batch: int = 256,
    of: str = "model",
) -> Separation:
    """The separation that a denoiser sees: one less its mean square error of x0, over the data's variance.

    The same data and noise are used at all levels. With conditions it is the mean over them, for one shared schedule.
    A model's error is never below the least one, so lambda is, if anything, too small.

    Args:
        denoiser: any denoiser of a path from data to Gaussian noise.
        x: data (n, *shape), best held-out.
        cond: their conditions, tensors (n, ...).
        draws: noisy samples at each level, the data in turn.
        roots: ``alpha / sigma`` for data of unit power; 60 from 0.001 to 30 by default, those that the path reaches.
        end: h at the clean end; the last one measured by default (1 for points).
        power: variance of the data per entry; that of x by default.

    Raises:
        BadValue: constant data, fewer than two rows, NaN, roots that the path doesn't reach.
        Incompatible: a path with an endpoint, noise that isn't Gaussian.
    """
    check_path(denoiser.process)
    x, rng = _checked(x), as_source(rng)
    power = _power(x) if power is None else power
    scaled = _reached(denoiser.process, power, roots)
    errors = _errors(denoiser, x, cond, scaled, math.sqrt(power), draws, rng, batch)
    return from_mse_curve(scaled, (errors / (x[0].numel() * power)).tolist(), end=end, power=power, of=of)


def _errors(
    denoiser: Any,
    x: Tensor,
    cond: Mapping[str, Tensor] | None,
    scaled: Sequence[float],
    scale: float,
    draws: int,
    rng: Source,
    batch: int,
    exact: bool = False,
) -> Tensor:
    """Mean ``|x0 - E[x0 | x_t]|^2`` of a sample at each of the rising roots; 0 once it has become negligible.

    Args:
        exact: the denoiser is the posterior mean over x itself, which :func:`_combined` needs.
    """
    if draws < 1:
        raise BadValue(f"draws must be at least 1, got {draws}")
    # Each noise with both signs, on rows in random order: less variance for the same number of evaluations.
    half, out = (draws + 1) // 2, torch.zeros(len(scaled), dtype=torch.float64)
    rows = torch.argsort(rng.uniform((len(x),)))[torch.arange(half) % len(x)].repeat(2)[:draws]
    noise = rng.normal((half, *x.shape[1:]), x.dtype)
    noise, size = torch.cat([noise, -noise])[:draws], float(x.double().square().sum() / len(x))
    each = size / noise[0].numel()  # the variance of an entry
    for i, root in enumerate(scaled):
        u = root / scale
        level = denoiser.process.at(float(denoiser.process.time(torch.tensor(2.0 * math.log(u), dtype=torch.float64))))
        slope, errors, gaps = u * each / (1.0 + u * u * each), [], []
        for part in torch.arange(draws).split(batch):
            some = x[rows[part]]
            given = None if cond is None else {k: v[rows[part]] for k, v in cond.items()}
            x_t = denoiser.process.forward(some, level, noise=noise[part]).x_t
            with torch.no_grad():
                said = denoiser(x_t, level, given).x0.double()
            errors.append(_squared(said - some.double()))
            if exact:
                gaps.append(_squared(said - slope / level.noise * x_t.double()))
        mean = torch.cat(errors).mean()
        linear = (1.0 - slope * u) ** 2 * size + slope**2 * noise[0].numel()
        out[i] = _combined(torch.cat(errors), linear - torch.cat(gaps)) if exact else mean
        if mean * (1.0 + root * root) < 1e-6 * size:
            break
    return out


def _squared(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def _combined(first: Tensor, second: Tensor) -> Tensor:
    """The mean of two samples of one expectation that isn't negative, in the proportion of the least variance.

    Here: ``|x0 - m|^2``, which is exact at low noise, and ``E|x0 - k y|^2 - |m - k y|^2`` for the best linear estimate
    ``k y`` of x0, exact at high noise; equal on average since the posterior mean m is orthogonal to its error.
    """
    gap = second - first
    spread = gap.var(correction=0)
    share = -((first - first.mean()) * gap).mean() / spread if spread > 0.0 else 0.0
    return (first + share * gap).mean().clamp_min(0.0)


def from_mse_curve(
    roots: Sequence[float],
    mse: Sequence[float],
    *,
    kind: str = "x0",
    end: float | None = None,
    power: float = 1.0,
    of: str = "a curve of errors",
) -> Separation:
    """The separation from a curve of errors, such as a trainer's loss by noise level.

    What breaks the two facts that hold for all data, an error that falls with the root, and one that is not above
    that of a Gaussian, ``1 / (1 + s^2)``, is measurement error and put right.

    Args:
        roots: ``sqrt(q) alpha / sigma``: the signal-to-noise root for data scaled to unit power; any order.
        mse: mean square error per entry, of x0 over the data's variance q, or of the noise.
        kind: which of the two, ``"x0"`` or ``"noise"``: ``mmse = mse / s^2``.
        end: h at the clean end; the last one of the curve by default.
        power: q.

    Raises:
        BadValue: negative or infinite errors, roots that repeat, an unknown kind.
    """
    if kind not in ERRORS:
        raise unknown("kind of error", kind, ERRORS)
    s, e = (torch.tensor([float(v) for v in values], dtype=torch.float64) for values in (roots, mse))
    if len(s) != len(e) or len(s) < 2:
        raise BadValue(f"a curve needs two roots and an error each at least, got {len(s)} and {len(e)}")
    if not bool(torch.isfinite(e).all() & (e >= 0.0).all() & torch.isfinite(s).all() & (s > 0.0).all()):
        raise BadValue("roots must be positive, errors >= 0, and both finite")
    s, order = s.sort()
    e = e[order] / s**2 if kind == "noise" else e[order]
    e = torch.minimum(e, 1.0 / (1.0 + s * s)).cummin(0).values
    h = float((1.0 - e[-1] * (1.0 + s[-1] ** 2)).clamp(0.0, 1.0))
    return Separation(
        roots=tuple(s.tolist()), mmse=tuple(e.tolist()), end=h if end is None else end, power=power, of=of
    )


def _checked(x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        raise BadType(f"x must be a floating point tensor, got {x.dtype}")
    if x.ndim < 2 or len(x) < 2:
        raise BadValue(f"at least two samples (n, *shape) are needed, got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise BadValue("the data hold NaN or infinity")
    return x


def _power(x: Tensor) -> float:
    power = float((x.double() - x.double().mean(0)).square().mean())
    if not power > 0.0:
        raise BadValue("all samples are the same: constant data don't move, and any path is as good")
    return power


def _reached(process: Process, power: float, roots: Sequence[float] | None, nodes: int = NODES) -> list[float]:
    """The roots, those asked for or the default ones that the path reaches."""
    scale = math.sqrt(power)
    first, last = process.at(0.0), process.at(1.0)
    low = scale * last.data / last.noise
    high = scale * first.data / first.noise if first.noise > 0.0 else math.inf
    if roots is None:
        even = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), nodes, dtype=torch.float64).tolist()
        return [s for s in even if low <= s <= high]
    outside = [s for s in roots if not low * (1.0 - 1e-9) <= s <= high * (1.0 + 1e-9)]
    if outside or len(roots) < 2:
        raise BadValue(f"the roots {outside or list(roots)} don't lie in those of the path, {low:.4g} .. {high:.4g}")
    return sorted(float(s) for s in roots)
