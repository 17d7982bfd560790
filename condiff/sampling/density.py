"""Log-densities along a stochastic trajectory, as a hook: the Itô density estimator (Skreta et al. 2024, 2412.17762).

One dot product per model and step; no divergence, no ODE. Any SDE run of the loop serves, whatever drives it: guidance,
another model, a superposition of models. The error falls like the square root of the step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.derivatives import divergence, draw_probes
from condiff.errors import BadType, BadValue, Degenerate, Incompatible, unknown
from condiff.process.gaussian import Process
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.process.prior import Prior
from condiff.random import Source, as_source
from condiff.sampling.gains import USUAL_SPREAD, gains
from condiff.sampling.grid import Grid
from condiff.sampling.likelihood import Likelihood, at_prior, check_endpoint
from condiff.sampling.loop import Hook, Run, Step, as_grid
from condiff.typing import Float

DIVERGENCES = ("exact", "hutchinson")
FEW_STEPS = 50


@dataclass(frozen=True, eq=False)
class ItoDensity(Hook):
    """``log q_t(x_t)`` of models along the trajectory that is sampled, in float64, from the increments themselves.

    ``hook.log_prob`` is (B, M): the log-density of each row at ``hook.level``, the last level with noise (a step to a
    noise-free level adds none, and is not counted). ``hook.values`` has it after every step.

    Args:
        denoisers: the models, each called once a step on the run's conditions. Without any, the one that is sampled:
            no further call. What a guided denoiser says is not the score of a density; name the models to follow.
        parts: follow instead the predictions that guidance combined (``aux["parts"]`` of :class:`Superpose`,
            :class:`Blend`, :class:`Combine`, :class:`Free`), without further calls.
        spread: None for Itô's formula; a number, the data's deviation, for kernels: sharper absolute densities with
            few steps, exact for isotropic Gaussian data. See :mod:`condiff.sampling.gains`.
        prior: law of the first state, or its log-density: a number, (B,) or (B, M); pure noise by default.
        divergence: ``"exact"`` or ``"hutchinson"``: also for solvers with another noise than the reverse SDE's, ODE
            solvers included. Costs a backward pass per dimension or probe.
        probes: number of probes for Hutchinson.

    Raises:
        Incompatible: a solver whose noise is not the reverse SDE's (without ``divergence``), or is no multiple of it;
            a joint state, tokens, noise that isn't Gaussian; no parts to follow.
        BadValue: a grid that goes up; a first state that still holds the data, without ``prior``.
        UserWarning: fewer than 50 steps: the estimate is then noisy.

    Example:
        >>> density = ItoDensity()
        >>> x = sample(model, solver=DDPM(), steps=500, num=8, hooks=[density])
        >>> density.log_prob
    """

    denoisers: Sequence[Denoises] = ()
    parts: bool = False
    spread: float | None = None
    prior: Prior | Tensor | float | None = None
    divergence: str | None = None
    probes: int = 1
    values: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _live: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_options(self.spread, self.divergence, self.probes)
        if isinstance(self.denoisers, Denoises) or not isinstance(self.denoisers, Sequence):
            raise BadType(f"denoisers= is a list of them, got {self.denoisers!r}")
        if self.denoisers and self.parts:
            raise BadValue("follow either denoisers= or parts=True")

    @property
    def log_prob(self) -> Tensor:
        """(B, M) float64, at :attr:`level`.

        Raises:
            BadValue: before the first step.
        """
        if not self.values:
            raise BadValue("no trajectory has been sampled with this hook yet")
        return self.values[-1]

    @property
    def level(self) -> Level:
        """Where :attr:`log_prob` holds."""
        return self._live["level"]

    def start(self, run: Run) -> None:
        check_run(run, self.divergence is not None)
        for one in self.denoisers:
            if one.process != run.denoiser.process:
                raise Incompatible(
                    f"densities along one path need one process: {run.denoiser.process} is sampled, not {one.process}"
                )
        self.values.clear()
        self._live.clear()

    def after(self, step: Step, run: Run) -> Tensor:
        said = self._said(step, run)
        if not self.values:
            self._live["level"] = step.t
        now = self.values[-1] if self.values else self._first(step, run, len(said))
        if adds_noise(step.s, run):
            found = gains(said, step.s, self.spread, self._divergence(step, run), run.solver.relative_noise or 0.0)
            now = now + found.at(step.x_s)
            self._live["level"] = step.s
        self.values.append(now)
        step.nfe = run.nfe
        return step.x_s

    def _said(self, step: Step, run: Run) -> list[Prediction]:
        if self.denoisers:
            run.nfe += len(self.denoisers)
            return [one(step.x_t, step.t, run.cond) for one in self.denoisers]
        prediction: Any = step.prediction
        if not self.parts:
            return [prediction]
        parts = prediction.aux.get("parts")
        if not parts:
            raise Incompatible(
                f"{run.denoiser!r} combines no predictions at t = {step.t.t}: there are no parts to follow"
            )
        return list(parts)

    def _divergence(self, step: Step, run: Run) -> Tensor | None:
        if self.divergence is None:
            return None
        if self.parts:
            raise Incompatible("divergences are of denoisers: name them, denoisers=[...], in place of parts=True")
        models = self.denoisers or [run.denoiser]
        probes = None
        if self.divergence == "hutchinson":
            probes = draw_probes(self.probes, "rademacher", step.x_t, run.rng)
        run.nfe += len(models)
        found = [divergence(m, step.x_t, step.t, run.cond, kind="score", probes=probes)[1].mean(1) for m in models]
        return torch.stack(found, 1)

    def _first(self, step: Step, run: Run, count: int) -> Tensor:
        """(B, M), of the first state."""
        given, x = self.prior, step.x_t
        if given is None or isinstance(given, Prior):
            if isinstance(step.t.t, Tensor):
                raise BadValue(
                    "with a time per row the first states have no common law: give prior=, log-densities (B,)"
                )
            given = at_prior(given, x, step.t, run.cond.source)
        first = torch.as_tensor(given, dtype=torch.float64, device=x.device)
        first = first[:, None] if first.ndim == 1 else first
        return first.expand(len(x), count)


def adds_noise(s: Level, run: Run) -> bool:
    """Whether a step to s counts: one to a noise-free level adds no noise, so that it tells no density.

    Raises:
        Incompatible: noise-free for some rows only.
    """
    if not isinstance(s.noise, Tensor):
        return s.noise != 0.0
    clean = s.noise == 0.0
    if bool(clean.any()) and not bool(clean.all()):
        raise Incompatible("some rows come to a noise-free level before others: let their densities end together")
    return not bool(clean.all())


def check_options(spread: float | None, divergence: str | None, probes: int) -> None:
    """
    Raises:
        BadValue: a negative spread, an unknown divergence, fewer than one probe.
        Incompatible: a divergence with a spread.
    """
    if spread is not None and not spread >= 0.0:
        raise BadValue(f"spread must be >= 0, got {spread}")
    if divergence is not None and divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    if divergence is not None and spread is not None:
        raise Incompatible("spread= compares noises that were drawn; divergence= goes with Itô's formula, spread=None")
    if probes < 1:
        raise BadValue(f"probes must be at least 1, got {probes}")


def check_process(process: Any) -> None:
    """
    Raises:
        Incompatible: tokens, a joint state, noise that isn't Gaussian.
    """
    if not isinstance(process, Process) or not process.noise_law.gaussian:
        raise Incompatible(f"the Itô density estimator needs one continuous state and Gaussian noise, not {process}")


def check_run(run: Run, divergence: bool = False) -> None:
    """Refuse trajectories whose increments don't tell densities; see :class:`ItoDensity`."""
    check_process(run.denoiser.process)
    solver = run.solver
    if not all(bool(torch.as_tensor(s.t <= t.t).all()) for t, s in pairwise(run.levels)):
        raise BadValue("the Itô density estimator follows a grid from noise to data: its times must not increase")
    for level in run.levels[:-1]:
        if bool((torch.as_tensor(level.noise) == 0.0).any()):
            raise Degenerate(
                f"log-densities are read off noise, and {run.denoiser.process} has none at t = {level.t}: start the "
                "grid where there is some"
            )
    amount = solver.relative_noise
    if amount is None or (amount != 1.0 and not divergence):
        adds = "no fixed multiple of" if amount is None else f"{amount:g} times"
        raise Incompatible(
            f"{solver} adds {adds} the noise of the reverse SDE, and the Itô density estimator needs exactly that: use "
            "SDE(), DDPM(), DDIM(eta=1.0) or DPMSolverPP(noise=1.0)"
            + ("" if amount is None else ", or divergence='hutchinson'")
        )
    if run.steps < FEW_STEPS:
        warnings.warn(
            f"{run.steps} steps: log-densities read off a path are noisy below {FEW_STEPS}", UserWarning, stacklevel=4
        )


def ito_likelihood(
    denoiser: Denoises,
    x: Float[Tensor, "batch *shape"],
    cond: Mapping[str, Any] | Conditions | None = None,
    *,
    steps: int | None = None,
    grid: Grid | Sequence[float] | Tensor | None = None,
    paths: int = 1,
    spread: float = USUAL_SPREAD,
    rng: int | torch.Generator | Sequence[int] | Source | None = None,
    prior: Prior | None = None,
) -> Likelihood:
    """``log p(x | cond)`` read off paths of the forward process: one evaluation a step, no divergence.

    Itô's formula from the noisier end of each step, so that every increment is one of the reversed path:
    ``log q_0(x) = log q_1(x_1) + sum of gains``. Each path gives the answer up to an error that falls like the square
    root of the step; the mean over paths has a smaller one.

    Args:
        denoiser: of one continuous state and Gaussian noise.
        x: clean data (B, ...).
        steps, grid: the *sampling* grid, from noise to data.
        paths: how many, each of its own noise.
        spread: the data's deviation: for isotropic Gaussian data of this one every step is exact. See
            :mod:`condiff.sampling.gains`.
        prior: as for :func:`log_likelihood`.

    Raises:
        BadValue: as :func:`log_likelihood`, fewer than one path.
        Incompatible: noise that isn't Gaussian, a joint state, tokens.

    Example:
        >>> found = ito_likelihood(model, images, cond, steps=200, paths=4, rng=0)
        >>> found.log_prob, found.std_error
    """
    check_options(spread, None, 1)
    if paths < 1:
        raise BadValue(f"paths must be at least 1, got {paths}")
    check_process(denoiser.process)
    if not x.dtype.is_floating_point:
        raise BadType(f"x must be a floating point tensor, got {x.dtype}")
    times = as_grid(grid, steps, denoiser.process).flip(0)
    if times.ndim != 1 or not bool((times[1:] > times[:-1]).all()):
        raise BadValue("a likelihood takes the sampling grid, from noise to data: its times must decrease")
    levels = denoiser.process.levels(times)
    cond, source = as_conditions(cond, getattr(denoiser, "kinds", None), x.device), as_source(rng)
    check_endpoint(denoiser, cond, prior)
    each = [_one_path(denoiser, x, cond, levels, source, spread) for _ in range(paths)]
    found = torch.stack([total + at_prior(prior, last, levels[-1], cond.source) for total, last in each])
    error = found.std(0) / math.sqrt(paths) if paths > 1 else None
    return Likelihood(found.mean(0), "estimate", error, each[0][1], paths * (len(levels) - 1))


def _one_path(
    denoiser: Denoises, x: Tensor, cond: Conditions, levels: Sequence[Level], rng: Source, spread: float
) -> tuple[Tensor, Tensor]:
    """What the reversed path gains, (B,), and its noisy end."""
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for s, t in pairwise(levels):
        x_t = denoiser.process.renoise(x, s, t, source=cond.source, rng=rng)
        said = denoiser(x_t, t, cond)
        total = total + gains([said], s, spread).at(x)[:, 0]
        x = x_t
    return total, x
