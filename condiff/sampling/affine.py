"""Exact laws of samplers: with an affine denoiser a sampler is an affine map of the numbers that it draws.

Gaussian data have such a denoiser, ``E[x0 | x_t] = P(t) x_t + q(t)``, and so do guided ones that combine them. Every
solver here is then ``x = c + sum_i M_i n_i`` with independent unit normals n_i: the initial draw and those of the
steps. One run of a batch, a row for each coordinate of each draw, gives c and all M_i, hence mean and covariance of
the samples without Monte Carlo. :func:`continuous_law` is what they converge to: the law of the probability-flow ODE,
or of the reverse SDE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible, NonFinite
from condiff.process.algebra import Weight
from condiff.process.prediction import Prediction
from condiff.process.prior import Prior
from condiff.random import Source, Stream
from condiff.sampling.grid import Grid
from condiff.sampling.loop import as_grid, trajectory
from condiff.sampling.solver import Solver
from condiff.typing import Float

Cond = Mapping[str, Any] | Conditions | None


@dataclass(frozen=True, eq=False)
class GaussianLaw:
    """``N(mean, cov)`` of the flattened sample of n numbers, float64."""

    mean: Float[Tensor, "n"]
    cov: Float[Tensor, "n n"]

    def distance(self, other: GaussianLaw) -> float:
        """The largest difference of means in standard deviations of ``other``, or of covariances in its variances.

        Plain differences where ``other`` is a point.
        """
        scale = other.cov.diagonal().max()
        scale = torch.where(scale > 1e-12, scale, 1.0)
        means = (self.mean - other.mean).abs().max() / scale.sqrt()
        return float(torch.maximum(means, (self.cov - other.cov).abs().max() / scale))


class _Basis(Source):
    """Row 0 gets zeros, row ``i`` the i-th coordinate of all numbers that are drawn, the last row all of them."""

    def __init__(self, rows: int, check: torch.Generator) -> None:
        self.rows, self.used, self.check = rows, 0, Stream(check)
        self.drawn: list[Tensor] = []

    def _draw(self, kind, shape, dtype, device, param):
        if kind != "normal":
            raise Incompatible(f"the sampler draws {kind} numbers: it isn't an affine map of normal ones")
        out = torch.zeros(tuple(shape), dtype=dtype)
        flat = out.reshape(shape[0], -1)
        first, self.used = self.used, self.used + flat.shape[1]
        index = torch.arange(first, max(first, min(self.used, self.rows - 2)))  # none where a first guess was too few
        flat[index + 1, index - first] = 1.0
        flat[-1] = self.check.normal(flat.shape[1:], dtype)
        self.drawn.append(flat[-1])
        return out.to(device)


@torch.no_grad()
def affine_law(
    denoiser: Denoises,
    *,
    solver: Solver,
    grid: Grid | Sequence[float] | Tensor | None = None,
    steps: int | None = None,
    cond: Cond = None,
    prior: Prior | None = None,
    shape: Sequence[int] | None = None,
    **options: Any,
) -> GaussianLaw:
    """The exact law of the samples of an affine denoiser, in float64.

    Args:
        denoiser: affine in x_t at every level: an oracle of Gaussian data, such ones combined, or any of your own.
        solver, grid, steps: as for :func:`~condiff.sampling.sample`.
        cond: conditions of one sample (a batch of 1).
        prior: the law of the initial state; the process's by default.
        shape: of one sample, by default the denoiser's.
        options: for :func:`~condiff.sampling.trajectory`, such as hooks that are affine.

    Raises:
        Incompatible: a sampler that isn't affine, which a row of random numbers tells, or draws other than normals.
        BadValue: conditions of more than one sample, an unknown shape.
        NonFinite: samples that aren't finite.
    """
    process, shape = denoiser.process, _shape(denoiser, shape)
    times = as_grid(grid, steps, process)
    cond = _one(cond, denoiser)

    def run(rows: int) -> tuple[Tensor, _Basis]:
        rng = _Basis(rows, torch.Generator().manual_seed(0))
        told = cond.map(lambda v: v.expand(rows, *v.shape[1:]))
        start, law = process.levels(times[:1])[0], prior if prior is not None else process.prior()
        x = law.sample(start, (rows, *shape), rng, source=told.source, dtype=torch.float64)
        for step in trajectory(denoiser, x, solver=solver, grid=times, cond=told, rng=rng, **options):
            x = step.x_s
        return x.reshape(rows, -1), rng

    dims = int(torch.Size(shape).numel())
    guess = dims * (len(times) if solver.stochastic else 1) + 2  # a draw a step; a run counts them
    x, rng = run(guess)
    if rng.used + 2 > guess:
        x, rng = run(rng.used + 2)
    if not bool(torch.isfinite(x).all()):
        ends = f"{float(times[0]):g} to {float(times[-1]):g}"
        raise NonFinite(f"{solver} on the times {ends} gives samples that aren't finite")
    mean, columns = x[0], x[1 : rng.used + 1] - x[0]
    expected = mean + torch.cat(rng.drawn) @ columns
    if not torch.allclose(expected, x[-1], rtol=1e-6, atol=1e-6 * float(x[-1].detach().abs().max())):
        raise Incompatible(f"{solver} with this denoiser isn't affine: a random row differs from the sum of its parts")
    return GaussianLaw(mean, columns.mT @ columns)


@torch.no_grad()
def continuous_law(
    denoiser: Denoises,
    start: GaussianLaw,
    *,
    grid: tuple[float, float] = (1.0, 0.0),
    cond: Cond = None,
    noise: float = 0.0,
    nodes: int = 2000,
) -> GaussianLaw:
    """The law that samplers of an affine denoiser converge to, from ``start`` at ``grid[0]`` to ``grid[1]``.

    Of ``dx = [velocity - noise^2 / 2 diffusion^2 score] dt + noise diffusion dw``, run back in time: the
    probability-flow ODE for ``noise=0``, the reverse SDE for 1. Integrated by the exponential midpoint rule (Magnus,
    order 2), which never looks at the ends, where fields may be singular.

    Args:
        start: mean and covariance at the first time.
        noise: how much of the process's diffusion.
        nodes: steps of the integration, closer towards both ends.

    Raises:
        Incompatible: noise > 0 for a process without an SDE.
    """
    shape = _shape(denoiser, None)
    dims = int(torch.Size(shape).numel())
    u = torch.linspace(0.0, 1.0, nodes + 1, dtype=torch.float64)
    times = grid[0] + (grid[1] - grid[0]) * torch.sin(0.5 * math.pi * u) ** 2
    middle, h = 0.5 * (times[1:] + times[:-1]), times.diff()
    matrix, offset, rate = _drift(denoiser, middle, shape, _one(cond, denoiser), noise)
    generator = torch.zeros(nodes, dims + 1, dims + 1, dtype=torch.float64)
    generator[:, :dims, :dims], generator[:, :dims, dims] = matrix * h[:, None, None], offset * h[:, None]
    flow = torch.linalg.matrix_exp(generator)
    half = torch.linalg.matrix_exp(0.5 * generator[:, :dims, :dims])
    added = (rate * h.abs())[:, None, None] * (half @ half.mT)
    mean, cov = torch.cat([start.mean, torch.ones(1, dtype=torch.float64)]), start.cov
    for step, noise_cov in zip(flow, added, strict=True):
        mean, cov = step @ mean, step[:dims, :dims] @ cov @ step[:dims, :dims].mT + noise_cov
    return GaussianLaw(mean[:dims], cov)


def _drift(
    denoiser: Denoises, t: Tensor, shape: tuple[int, ...], cond: Conditions, noise: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``dx / dt = matrix x + offset`` at the times, (N, D, D) and (N, D), and the variance per unit of time, (N,)."""
    dims = int(torch.Size(shape).numel())
    probes = torch.cat([torch.zeros(1, dims), torch.eye(dims)]).double()
    x = probes.repeat(len(t), 1).reshape(-1, *shape)
    told = cond.map(lambda v: v.expand(len(x), *v.shape[1:]))
    level = denoiser.process.at(t.repeat_interleave(dims + 1))
    said: Prediction = denoiser(x, level, told)
    slope, rate = said.velocity, torch.zeros(len(t), dtype=torch.float64)
    if noise > 0.0:
        square: Weight = denoiser.process.diffusion2(level)
        square = noise**2 * torch.as_tensor(square, dtype=torch.float64).expand(len(x))
        slope = slope - 0.5 * square.reshape(-1, *(1,) * len(shape)) * said.score
        rate = square[:: dims + 1]
    slope = slope.reshape(len(t), dims + 1, dims).double()
    return (slope[:, 1:] - slope[:, :1]).mT, slope[:, 0], rate


def _shape(denoiser: Denoises, shape: Sequence[int] | None) -> tuple[int, ...]:
    shape = denoiser.shape if shape is None else shape
    if shape is None:
        raise BadValue("the denoiser has no shape of its own: give shape=")
    return tuple(shape)


def _one(cond: Cond, denoiser: Denoises) -> Conditions:
    cond = as_conditions(cond, getattr(denoiser, "kinds", None))
    if cond.batch not in (None, 1):
        raise BadValue(f"a law is that of one sample's conditions: give one row, got {cond.batch}")
    return cond.map(lambda v: v.double() if v.dtype.is_floating_point else v)
