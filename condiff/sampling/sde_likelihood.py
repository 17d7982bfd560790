"""The likelihood bound of a stochastic sampler, from paths of the same SDE run from data to noise.

With ``dx = (velocity + eps score) dt + sqrt(2 eps) dW`` from x_0 = x to t = 1 (Albergo 2023; Song 2021)::

    log p(x) >= E[ log p_1(x_1) + int_0^1 div(velocity - eps score) - eps |score|^2 dt ]

where p is the law that the SDE of the same eps samples. It is an equality where ``score`` is the score of that law, as
for an exact model: along the ODE (eps = 0) it is the change of variables of :func:`log_likelihood`. The estimate also
takes off ``int sqrt(2 eps) score . dW``, whose mean is zero: for an exact model all paths then say the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.derivatives import draw_probes, exact, hutchinson
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.gaussian import Process
from condiff.process.level import Level
from condiff.process.prior import Prior
from condiff.random import Source, as_source
from condiff.sampling.adaptive import default_floor, ends
from condiff.sampling.grid import Grid
from condiff.sampling.likelihood import METHODS, Likelihood, _Flow, at_prior, check_endpoint
from condiff.sampling.loop import as_grid
from condiff.sampling.solvers.sde import SDE
from condiff.typing import Float, Tensor


def sde_log_likelihood(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    cond: Mapping[str, Any] | Conditions | None = None,
    *,
    solver: SDE,
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    paths: int = 16,
    method: str = "exact",
    probes: int = 1,
    probe: str = "rademacher",
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    prior: Prior | None = None,
    chunk: int = 64,
) -> Likelihood:
    """A lower bound on ``log p(x | cond)`` of samples drawn with an :class:`SDE` solver, estimated over paths.

    Args:
        denoiser: any denoiser with a score.
        x: clean data (B, ...); use float64 for sharp results.
        solver: the SDE, which says eps(t).
        steps, grid: Euler-Maruyama steps on the *sampling* grid, 200 without any choice.
        paths: how many per sample; their spread gives ``std_error``.
        method: how divergences are worked out: ``"exact"`` or ``"hutchinson"``.
        probes, probe, chunk: of the divergences, as in :func:`log_likelihood`.
        rng: of paths and probes.
        prior: law of the state at the grid's first time, as in :func:`log_likelihood`.

    Raises:
        BadType: a solver that isn't an SDE. BadValue: one without noise; as :func:`log_likelihood`.
        Incompatible: a prior without density, a process without score, a joint state, tokens.
    """
    if not isinstance(solver, SDE):
        raise BadType(f"solver= takes an SDE, such as SDE(0.5, 'constant'), got {solver!r}")
    if not solver.stochastic:
        raise BadValue("without noise the sampler is the ODE, whose density is exact: use log_likelihood()")
    if paths < 1:
        raise BadValue(f"paths must be at least 1, got {paths}")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    process = denoiser.process
    if not isinstance(process, Process):
        raise Incompatible(f"a likelihood along an SDE is of one continuous state, not of {process}")
    if not x.dtype.is_floating_point:
        raise BadType(f"x must be a floating point tensor, got {x.dtype}")
    times = as_grid(grid, 200 if steps is None and (grid is None or isinstance(grid, Grid)) else steps, process)
    times = times.flip(0)
    if times.ndim != 1 or not bool((times[1:] > times[:-1]).all()):
        raise BadValue("a likelihood takes the sampling grid, from noise to data: its times must decrease")
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    check_endpoint(denoiser, cond, prior)
    levels, source = process.levels(times), as_source(rng)
    solver.plan(levels[::-1])  # refuses a process without a score
    each = x.detach()[:, None].expand(-1, paths, *x.shape[1:])  # rows draw for all of their paths
    drawn = None if method == "exact" else draw_probes(probes, probe, each, source).flatten(1, 2)
    walk = _Walk(denoiser, cond.repeat(paths), drawn, chunk)
    state, total = walk.up(each, levels, solver, source)
    total = total + at_prior(prior, state, levels[-1], walk.cond.source)
    total = total.reshape(len(x), paths)
    error = total.std(1) / math.sqrt(paths) if paths > 1 else None
    return Likelihood(total.mean(1), "lower bound", error, state[::paths], walk.nfe)


class _Walk(_Flow):
    """Euler-Maruyama from data to noise, with the integral of ``div(velocity - eps score) - eps |score|^2``."""

    def up(self, each: Tensor, levels: Sequence[Level], solver: SDE, rng: Source) -> tuple[Tensor, Tensor]:
        """From (B, paths, ...): the last state (B paths, ...), and the integral (B paths,) float64."""
        x = each.flatten(0, 1)
        first, _ = ends(self.denoiser.process, levels[0], levels[-1], default_floor(x.dtype))
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if first is not levels[0]:
            x, left = self._leave(x, first)
            total = left.mean(1)
        for t, s in pairwise([first, *(level for level in levels[1:] if level.t > first.t)]):
            dt, epsilon = s.t - t.t, solver.epsilon(t)
            assert not isinstance(epsilon, Tensor)
            velocity, score, rate = self._rates(x, t, epsilon)
            noise = rng.normal(each.shape, x.dtype, x.device).flatten(0, 1)
            kick = math.sqrt(2.0 * epsilon * dt) * noise
            x = x + dt * (velocity + epsilon * score) + kick
            total = total + dt * rate - (score * kick).double().flatten(1).sum(1)
        return x, total

    def _rates(self, x: Tensor, t: Level, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, score, and the integrand (B,)."""
        self.nfe += 1
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            said = self.denoiser(x, t, self.cond)
            velocity, score = said.velocity, said.score
            drift = velocity - epsilon * score
            spread = (
                exact(drift, x, self.chunk) if self.probes is None else hutchinson(drift, x, self.probes, self.chunk)
            )
        score = score.detach()
        rate = spread.mean(1) - epsilon * score.double().flatten(1).square().sum(1)
        return velocity.detach(), score, rate
