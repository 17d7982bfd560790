"""Measuring the statistics of a model for DPM-Solver-v3, once, on a few hundred states at every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises, device_of
from condiff.derivatives import draw_probes, jvp, neighbours, whole_times
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.gaussian import Process
from condiff.process.level import Level
from condiff.random import Source, as_source
from condiff.sampling.model_statistics import ModelStatistics, guidance_of, lam_between
from condiff.sampling.sigmas import table_size

RATES = ("difference", "forward")


def measure_statistics(
    denoiser: Denoises,
    *,
    data: Tensor | None = None,
    cond: Mapping[str, Any] | Conditions | None = None,
    samples: int | None = None,
    nodes: int = 250,
    start: float | None = None,
    end: float | None = None,
    batch: int = 64,
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    shape: Sequence[int] | None = None,
    rate: str = "difference",
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
) -> ModelStatistics:
    """The tables of a model, guided or not, measured on K states at each of ``nodes + 1`` levels.

    The states are clean samples with noise added, the same noise and probes at all levels; or without ``data`` (for
    guided models and models of latents) those that a sampler visits: DDIM from the prior along the nodes. With x and
    z fixed, ``J = d E[z] / dx`` and a sign v per element::

        l = mean of noise v (J v)
        s = cov(f, f') / var(f),  b = mean f' - s mean f            f' = df / dlam along the ODE

    where f doesn't vary (normal data, pure noise) ``s = 0, b = mean f'``. It takes about ``5 (nodes + 1) K``
    evaluations, once.

    f' is the difference of f between the neighbouring nodes, each a step of the ODE away. Networks are rough in t, from
    their time features: their derivative at the nodes (``rate="forward"``) says little of what happens between, and s
    of it is large and of either sign. Of an exact or very smooth model it is sharper.

    Args:
        denoiser: the very denoiser that will be sampled: guidance included.
        data: clean samples (K, *shape), in the model's space.
        cond: conditions of the K states.
        samples: K without data; by default as many as there are conditions. Take a few hundred: s is the slope of a
            line through K points, for every element.
        nodes: intervals of the tables, about 50 times the steps they are meant for.
        start, end: times of the first and the last node. By default 1 (0.999 where t = 1 is pure noise), and 1e-3, or
            the first numbered level of a table.
        batch: states at once.
        rng: seed of the noise and the signs.
        shape: of one sample, where neither the denoiser nor data say it.
        rate: ``"difference"`` or ``"forward"``.
        progress: show a bar.
        dtype: of the states, without data.

    Raises:
        BadValue: data, conditions and samples that don't agree; ends that are no range.
        Incompatible: a joint state, an endpoint process; a model without forward-mode derivative (see
            :func:`condiff.derivatives.jvp`).
        NonFinite: (from the tables) a model that says NaN.

    Example:
        >>> guided = Free(model, scale=7.5)
        >>> statistics = measure_statistics(guided, cond={"text": prompts}, nodes=250, rng=0)
        >>> statistics.save("tables.safetensors")
    """
    process = denoiser.process
    if not isinstance(process, Process) or process.has_source:
        raise Incompatible(f"these statistics are of a path from noise to data, not of {process}")
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), device_of(denoiser, data))
    if rate not in RATES:
        raise unknown("rate", rate, RATES)
    if nodes < 1 or batch < 1:
        raise BadValue(f"nodes and batch must be at least 1, got {nodes} and {batch}")
    start = (0.999 if process.at(1.0).data == 0.0 else 1.0) if start is None else start
    ends = lam_between(process, start, 1.0 / (table_size(process) or 1000) if end is None else end)
    lam = torch.linspace(*ends, nodes + 1, dtype=torch.float64)
    levels = process.levels(process.time(2.0 * lam))
    states = _States(denoiser, levels, data, cond, samples, shape, as_source(rng), dtype, rate)
    if whole_times(denoiser, states.x[:batch].to(device_of(denoiser, states.x)), levels[0], cond.rows(slice(0, batch))):
        states.rate = "forward"  # nodes may lie closer than the levels that it tells apart
    begin = getattr(denoiser, "start", None)
    if begin is not None:
        begin()
    moments = [_measure(denoiser, states, j, batch) for j in _counted(len(levels), progress)]
    return ModelStatistics(
        **_tables(moments, float(lam[1] - lam[0])),
        ends=ends,
        process=process,
        shape=tuple(states.x.shape[1:]),
        guidance=guidance_of(denoiser),
        samples=states.count,
    )


class _States:
    """The K states at each level, with their probes: noised data, or the path of a sampler."""

    def __init__(
        self,
        denoiser: Denoises,
        levels: Sequence[Level],
        data: Tensor | None,
        cond: Conditions,
        samples: int | None,
        shape: Sequence[int] | None,
        rng: Source,
        dtype: torch.dtype,
        rate: str,
    ) -> None:
        self.levels, self.data, self.cond, self.rate = levels, data, cond, rate
        self.count = _count(data, cond, samples)
        device = device_of(denoiser) if data is None else data.device
        if data is not None:
            if not data.dtype.is_floating_point:
                raise BadType(f"data must be a floating point tensor, got {data.dtype}")
            shape, dtype = data.shape[1:], data.dtype
        shape = denoiser.shape if shape is None else shape
        if shape is None:
            raise BadValue("the denoiser doesn't know the shape of a sample: give shape=, or data=")
        process = denoiser.process
        full = (self.count, *shape)
        if data is None:
            self.x = process.prior().sample(levels[0], full, rng, dtype=dtype, device=device)
        else:
            self.x = self.noise = process.noise_law.sample(rng, full, dtype, device)
        self.probes = draw_probes(1, "rademacher", self.x, rng)[0]

    def go(self, j: int) -> None:
        """To node j."""
        if self.data is not None:
            level = self.levels[j]
            self.x = level.data * self.data + level.noise * self.noise

    def leave(self, j: int, noise: Tensor) -> None:
        """On to the next node by the predicted noise, a DDIM step, when the states are those of a path."""
        if self.data is None and j + 1 < len(self.levels):
            t, s = self.levels[j], self.levels[j + 1]
            ratio = float(s.data / t.data)
            self.x = ratio * self.x + float(s.noise - ratio * t.noise) * noise


class _Change(NamedTuple):
    """The change of f along the ODE, ``f' = rest - (l_after after - l_before before) / gap``, for the l of the nodes
    around, which is known when all are measured; gap is their distance."""

    rest: Tensor
    after: Tensor
    before: Tensor


class _Moments(NamedTuple):
    """What one node leaves: of f, and of the parts of its change with their covariance with f."""

    l: Tensor  # noqa: E741
    constant: Tensor  # bool: f doesn't vary
    var: Tensor
    mean: Tensor
    rest: Tensor
    after: Tensor
    before: Tensor
    cov_rest: Tensor
    cov_after: Tensor
    cov_before: Tensor


@torch.no_grad()
def _measure(denoiser: Denoises, states: _States, j: int, batch: int) -> _Moments:
    states.go(j)
    rows = range(0, states.count, batch)
    parts = [_evaluate(denoiser, states, j, slice(i, min(i + batch, states.count))) for i in rows]
    noise, diagonal, *change = (torch.cat(p) for p in zip(*parts, strict=True))
    found = _moments(states.x, noise, diagonal, _Change(*change), states.levels[j], states.rate == "forward")
    states.leave(j, noise)
    return found


def _evaluate(denoiser: Denoises, states: _States, j: int, rows: slice) -> tuple[Tensor, ...]:
    """E[z], ``v (J v)``, and the three parts of :class:`_Change`, without ``l noise E[z] / data`` at a derivative."""
    level, cond, device = states.levels[j], states.cond.rows(rows), device_of(denoiser, states.x)
    x, v = states.x[rows].to(device), states.probes[rows].to(device)
    noise, along = jvp(denoiser, x, level, cond, kind="noise", dx=v)
    ratio = float(level.d_data / level.data)
    lam_rate = ratio - float(level.d_noise / level.noise)  # d lam / dt
    dx = (ratio * x + float(level.d_noise - ratio * level.noise) * noise) / lam_rate
    if states.rate == "difference":
        change = _difference(denoiser, states.levels, j, x, noise, cond)
    else:
        dt, between = 1.0 / lam_rate, None
        if whole_times(denoiser, x, level, cond):
            dt, between = _clock(denoiser, level)
        rate = jvp(denoiser, x, level, cond, kind="noise", dx=dx, dt=dt, between=between).derivative
        y = x.double() / float(level.data)
        change = _Change(float(level.noise / level.data) * (rate.double() - noise.double()), y, y)
    return tuple(out.to(states.x.device) for out in (noise, v * along, *change))


def _difference(
    denoiser: Denoises, levels: Sequence[Level], j: int, x: Tensor, noise: Tensor, cond: Conditions
) -> _Change:
    """Between the neighbouring nodes, each a step along the ODE away; one-sided at an end.

    f itself is differenced, not E[z]: where the linear part is nearly all, what is left of it would drown in the error
    of its own difference.
    """
    here, found = levels[j], []
    y = x.double() / float(here.data)
    a = float(here.noise / here.data) * noise.double()
    for level in (levels[min(j + 1, len(levels) - 1)], levels[max(j - 1, 0)]):
        h = 0.5 * float(level.log_snr - here.log_snr)
        to = y - h * a  # dy / dlam = -a
        there = denoiser((float(level.data) * to).to(x), level, cond).noise.double() if h else noise.double()
        found.append((h, to, float(level.noise / level.data) * there))
    (h1, after, a1), (h0, before, a0) = found
    return _Change((a1 - a0) / (h1 - h0), after, before)


def _clock(denoiser: Denoises, level: Level) -> tuple[float, tuple[float, float]]:
    """``dt / dlam`` of the chord between neighbouring levels, for models that know whole-numbered times only."""
    low, high = neighbours(denoiser.process, float(level.t))
    rise = 0.5 * float(denoiser.process.at(high).log_snr - denoiser.process.at(low).log_snr)
    return (high - low) / rise, (low, high)


def _moments(x: Tensor, noise: Tensor, diagonal: Tensor, change: _Change, level: Level, exact: bool) -> _Moments:
    precision = torch.finfo(noise.dtype).eps
    l = float(level.noise) * diagonal.double().mean(0)  # noqa: E741
    y, a = x.double() / float(level.data), float(level.noise / level.data) * noise.double()
    f = a - l * y
    parts = (change.rest + l * a if exact else change.rest, change.after, change.before)
    mean, centred = f.mean(0), f - f.mean(0)
    var, power = centred.square().mean(0), f.square().mean(0)
    # Where f is constant, or nothing but the round-off of a - l y, its variance says nothing.
    floor = (1e3 * precision) ** 2 * (a.square() + (l * y).square()).mean(0)
    constant = (var <= 1e-10 * power) | (var <= floor)
    covariances = ((centred * part).mean(0) for part in parts)
    return _Moments(l, constant, var, mean, *(part.mean(0) for part in parts), *covariances)


def _tables(moments: Sequence[_Moments], h: float) -> dict[str, Tensor]:
    m = _Moments(*(torch.stack(column) for column in zip(*moments, strict=True)))
    index = torch.arange(len(m.l), device=m.l.device)
    up, down = (index + 1).clamp(max=len(m.l) - 1), (index - 1).clamp(min=0)
    gap = (h * (up - down)).reshape(-1, *(1,) * (m.l.ndim - 1))
    mean = m.rest - (m.l[up] * m.after - m.l[down] * m.before) / gap
    cov = m.cov_rest - (m.l[up] * m.cov_after - m.l[down] * m.cov_before) / gap
    s = torch.where(m.constant, 0.0, cov / torch.where(m.constant, 1.0, m.var))
    return {"l": m.l.cpu(), "s": s.cpu(), "b": (mean - s * m.mean).cpu()}


def _count(data: Tensor | None, cond: Conditions, samples: int | None) -> int:
    sizes = {"data": None if data is None else len(data), "cond": cond.batch, "samples": samples}
    known = {k: v for k, v in sizes.items() if v is not None}
    if len(set(known.values())) != 1:
        raise BadValue(f"give data=, conditions or samples=, one number of states; got {known or 'none'}")
    count = next(iter(known.values()))
    if count < 1:
        raise BadValue(f"statistics need at least one state, got {count}")
    return count


def _counted(count: int, progress: bool) -> Any:
    if not progress:
        return range(count)
    from tqdm.auto import tqdm

    return tqdm(range(count), desc="measuring", unit="level", leave=False)
