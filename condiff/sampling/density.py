"""Log-densities along a stochastic trajectory, as a hook: the Itô density estimator (Skreta et al. 2024, 2412.17762).

One dot product per model and step; no divergence, no ODE. Any SDE run of the loop serves, whatever drives it: guidance,
another model, a superposition of models. The error falls like the square root of the step.
"""

from __future__ import annotations

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
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.gaussian import Process
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.process.prior import Moments, Prior
from condiff.random import Source
from condiff.sampling.gains import RULES, clean_end, gains
from condiff.sampling.loop import Hook, Run, Step

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
        rule: ``"ito"`` or ``"kernel"``, see :mod:`condiff.sampling.gains`.
        initial: log-density of the first state: a :class:`Prior`, a number, or (B,) or (B, M); pure noise by default.
        divergence: ``"exact"`` or ``"hutchinson"``: also for solvers with another noise than the reverse SDE's, ODE
            solvers included. Costs a backward pass per dimension or probe.
        probes: number of probes for Hutchinson.

    Raises:
        Incompatible: a solver whose noise is not the reverse SDE's (without ``divergence``), or is no multiple of it;
            a joint state, tokens, noise that isn't Gaussian; no parts to follow.
        BadValue: a grid that goes up; a first state that still holds the data, without ``initial``.
        UserWarning: fewer than 50 steps: the estimate is then noisy.

    Example:
        >>> density = ItoDensity()
        >>> x = sample(model, solver=DDPM(), steps=500, num=8, hooks=[density])
        >>> density.log_prob
    """

    denoisers: Sequence[Denoises] = ()
    parts: bool = False
    rule: str = "ito"
    initial: Prior | Tensor | float | None = None
    divergence: str | None = None
    probes: int = 1
    values: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _live: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_options(self.rule, self.divergence, self.probes)
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
        gain = gains(self.rule, said, step.s, self._divergence(step, run), run.solver.relative_noise or 0.0)
        if gain is not None:
            now = now + gain.at(step.x_s)
            self._live["level"] = step.s
        self.values.append(now)
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
        given, x = self.initial, step.x_t
        if given is None or isinstance(given, Prior):
            if given is None:
                check_noise(step.t)
            given = (given or Moments()).log_prob(x, step.t, run.cond.source)
        first = torch.as_tensor(given, dtype=torch.float64, device=x.device)
        first = first[:, None] if first.ndim == 1 else first
        return first.expand(len(x), count)


def check_options(rule: str, divergence: str | None, probes: int) -> None:
    """
    Raises:
        BadValue: an unknown rule or divergence, fewer than one probe.
        Incompatible: a divergence with rule="kernel".
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    if divergence is not None and divergence not in DIVERGENCES:
        raise unknown("divergence", divergence, DIVERGENCES)
    if divergence is not None and rule != "ito":
        raise Incompatible("rule='kernel' compares noises that were drawn; divergence= needs rule='ito'")
    if probes < 1:
        raise BadValue(f"probes must be at least 1, got {probes}")


def check_noise(level: Level) -> None:
    """Refuse a level that isn't pure noise: the law of the state there depends on the data."""
    if not bool(torch.as_tensor(level.data <= 0.05 * level.noise).all()):
        raise BadValue(
            f"at t = {level.t} the state still holds the data (data = {level.data}, noise = {level.noise}): "
            "give initial=, its law or log-density there"
        )


def check_run(run: Run, divergence: bool = False) -> None:
    """Refuse trajectories whose increments don't tell densities; see :class:`ItoDensity`."""
    process, solver = run.denoiser.process, run.solver
    if not isinstance(process, Process) or not process.noise_law.gaussian:
        raise Incompatible(f"the Itô density estimator needs one continuous state and Gaussian noise, not {process}")
    if not all(bool(torch.as_tensor(s.t <= t.t).all()) for t, s in pairwise(run.levels)):
        raise BadValue("the Itô density estimator follows a grid from noise to data: its times must not increase")
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


def along_noising(
    denoiser: Denoises,
    x: Tensor,
    cond: Mapping[str, Any] | Conditions,
    levels: Sequence[Level],
    rng: Source,
    prior: Prior | None,
    rule: str = "kernel",
) -> tuple[Tensor, Tensor]:
    """``log q(x)`` read off one path of the forward process: ``(estimate (B,), last state)``.

    Itô's formula run from the noisier end of each step, so that every increment is one of the reversed path. One
    evaluation a step.

    Args:
        levels: from data to noise.
    """
    cond = as_conditions(cond, getattr(denoiser, "kinds", None), x.device)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for s, t in pairwise(levels):
        x_t = denoiser.process.renoise(x, s, t, source=cond.source, rng=rng)
        said = denoiser(x_t, t, cond)
        gain = gains(rule, [said], s)
        total = total + (clean_end(said, x, s) if gain is None else gain.at(x)[:, 0])
        x = x_t
    if prior is None:
        check_noise(levels[-1])
    return total + (prior or Moments()).log_prob(x, levels[-1], cond.source), x
