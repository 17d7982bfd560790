"""Superposition of diffusion models at sampling time (Skreta et al. 2024, arXiv 2412.17762).

Several models, or one model with several conditions, drive one state: ``sum_i kappa_i score_i`` with weights per row
that follow the models' log-densities ``log q_i(x_t)``, kept up to date from the increments by the Itô density
estimator (:mod:`condiff.sampling.gains`). It brings the hook that does so into the loop (``step_hooks``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible, unknown
from condiff.guidance.combine import expand
from condiff.guidance.compose import check_members
from condiff.guidance.densities import Keeper, Memory, with_divergence
from condiff.guidance.guided import Guided, Remembered, Strength, always, check_strength, evaluate, strength
from condiff.process import Level, Prediction, mix
from condiff.process.algebra import Weight
from condiff.process.gaussian import Process
from condiff.sampling.density import check_options
from condiff.sampling.gains import solve
from condiff.sampling.loop import Hook

MODES = ("and", "or", "average")


@dataclass(frozen=True, eq=False, repr=False)
class Superpose(Guided):
    """``sum_i kappa_i s_i(x_t)`` over M models, with kappa (B, M) by mode:

    * ``"or"``, samples of either: ``kappa = softmax(temperature (log q_i(x_t) + log_weights_i))``. At temperature 1 it
      is the score of the mixture; at 1e6 the likelier model takes all.
    * ``"and"``, samples likely under each: kappa such that all ``log q_i`` gain the same in every step. On a step with
      noise it is the average of the models with the noise projected off their differences; kappa may leave [0, 1].
      On an ODE solver (with ``divergence``) kappa solves the same condition for the velocity.
    * ``"average"``: ``kappa = 1 / M``.

    With ``scale`` w the sum is guided, ``reference + w (sum_i kappa_i s_i - reference)``; the densities stay those of
    the models. AND and OR run with solvers whose noise is the reverse SDE's (:class:`SDE`, :class:`DDPM`,
    ``DDIM(eta=1)``, ``DPMSolverPP(noise=1)``), or with any ODE solver when ``divergence`` is given.

    AND and OR keep state: ``log_prob`` holds the log-densities (B, M), relative to those of the first state, and
    ``weights`` the last kappa (of AND: those of a step of plain Euler-Maruyama with the same result). Predictions carry
    ``aux["parts"]``, the M predictions.

    Args:
        denoisers: M of one process, or one with M sets of ``conds``, which is called once a step for all.
        conds: conditions that model i is told, beside the caller's and in place of those of the same names; one row
            serves all. With several denoisers one set each.
        mode: ``"and"``, ``"or"``, ``"average"``.
        scale: guided scale w: a number, (B,), or a function of the level; 1 is no guidance.
        reference: what is guided from: a denoiser, or (with one denoiser) conditions such as those of a negative
            prompt; by default the one denoiser without its conditions.
        temperature: of OR.
        log_weights: of OR, log prior weights (M,), large numbers for infinite ones.
        lift: of AND, (M,): ``log q_i - log q_1`` reaches ``lift_i - lift_1`` at the end of the grid.
        spread: of the estimator: None for Itô's formula, the data's deviation for kernels.
        divergence: ``"exact"`` or ``"hutchinson"``, for ODE solvers.
        probes: for Hutchinson.

    Raises:
        BadValue: unknown options, fewer than two models, numbers that don't match them, options of another mode.
        Incompatible: denoisers of different processes, tokens, noise that isn't Gaussian; a solver that doesn't fit;
            one of these inside a wrapper that hides it from the loop.

    Example:
        >>> both = Superpose(model, [{"label": [3]}, {"label": [5]}], mode="and", scale=2.0)
        >>> x = sample(both, solver=DDPM(), steps=200, num=16, seed=0)
    """

    denoisers: Denoises | Sequence[Denoises]
    conds: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    mode: str = "and"
    scale: Strength = 1.0
    reference: Denoises | Mapping[str, Any] | None = field(default=None, repr=False)
    temperature: float = 1.0
    log_weights: Sequence[float] | None = None
    lift: Sequence[float] | None = None
    spread: float | None = None
    divergence: str | None = None
    probes: int = 1
    _told: Remembered = field(default_factory=Remembered, init=False, repr=False)
    _memory: Memory = field(default_factory=Memory, init=False, repr=False)

    def __post_init__(self) -> None:
        models = self._models
        check_members(models)
        check_strength(self.scale, "scale")
        check_options(self.spread, self.divergence, self.probes)
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        if self.count < 2:
            raise BadValue("a superposition takes two models or more, or one with two sets of conds= or more")
        if self.conds is not None and len(models) not in (1, len(self.conds)):
            raise BadValue(f"{len(models)} denoisers need as many conds, got {len(self.conds)}")
        if not isinstance(self.process, Process) or not self.process.noise_law.gaussian:
            raise Incompatible(f"a superposition needs one continuous state and Gaussian noise, not {self.process}")
        shapes = {m.shape for m in models if m.shape is not None}
        if len(shapes) > 1:
            raise Incompatible(f"the models' samples differ in shape: {sorted(shapes)}")
        if self.mode == "and" and always(self.scale, 0.0):
            raise BadValue("mode='and' steers by the models, which scale=0 leaves out")
        self._check_reference()
        self._check_numbers()

    def _check_reference(self) -> None:
        if self.reference is None or isinstance(self.reference, Mapping):
            if len(self._models) > 1 and (self.reference is not None or not always(self.scale, 1.0)):
                raise BadValue("with several denoisers, scale= needs reference=, a denoiser to guide from")
        else:
            check_members([*self._models, self.reference])

    def _check_numbers(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise BadValue(
                f"temperature must be positive and finite, got {self.temperature}; 1e6 lets one model take all"
            )
        for name, given, mode in (("log_weights", self.log_weights, "or"), ("lift", self.lift, "and")):
            if given is None:
                continue
            if self.mode != mode:
                raise BadValue(f"{name}= belongs to mode={mode!r}, this is {self.mode!r}")
            if len(given) != self.count or not all(math.isfinite(v) for v in given):
                raise BadValue(f"{name} must be {self.count} finite numbers, got {list(given)}")
        if self.temperature != 1.0 and self.mode != "or":
            raise BadValue(f"temperature= belongs to mode='or', this is {self.mode!r}")

    @property
    def _models(self) -> tuple[Denoises, ...]:
        return tuple(self.denoisers) if isinstance(self.denoisers, Sequence) else (self.denoisers,)

    @property
    def members(self) -> tuple[Denoises, ...]:
        given = isinstance(self.reference, Mapping) or self.reference is None
        return self._models if given else (*self._models, self.reference)  # type: ignore[return-value]

    @property
    def count(self) -> int:
        """M."""
        return len(self._models) if self.conds is None else len(self.conds)

    @property
    def step_hooks(self) -> tuple[Hook, ...]:
        """What keeps the log-densities, and for AND projects the noise."""
        return (*super().step_hooks, Keeper(self))

    @property
    def log_prob(self) -> Tensor:
        """``log q_i(x_t)`` at the last state with noise, relative to the first state, (B, M) float64.

        Raises:
            BadValue: before the first step, and for an average, which keeps none.
        """
        return self._memory.read("log_prob")

    @property
    def weights(self) -> Tensor:
        """kappa of the last step, (B, M) float64.

        Raises:
            BadValue: before the first.
        """
        return self._memory.read("weights")

    def start(self) -> None:
        super().start()
        self._memory.reset(waiting=self.mode != "average")

    def predict(self, x_t: Tensor, level: Level, cond: Conditions) -> Prediction:
        if self._memory.waiting:
            raise Incompatible(
                f"{self!r} is wrapped in something that hides it from the sampler, which must ask its hook: wrap the "
                "models inside, not the superposition"
            )
        scale = strength(self.scale, level, x_t)
        parts, reference, divergences = self._evaluate(x_t, level, cond, not always(scale, 1.0))
        kappa = self._kappa(parts, reference, divergences, scale)
        if self._memory.parts is None:  # a solver may evaluate more than once in a step
            self._memory.parts, self._memory.weights, self._memory.divergences = parts, kappa, divergences
        weights: list[Weight] = [_by(scale, k) for k in kappa.unbind(1)]
        if reference is None:
            out = mix(parts, weights)
        else:
            out = mix([*parts, reference], [*weights, 1.0 - scale])
        out.aux = {**parts[0].aux, "parts": parts, "weights": kappa}
        return out

    # Evaluations

    def _evaluate(
        self, x_t: Tensor, level: Level, cond: Conditions, guided: bool
    ) -> tuple[list[Prediction], Prediction | None, Tensor | None]:
        """The M predictions, the reference where it is used, and the divergences (B, M) of the scores on an ODE."""
        *told, last = self._told(self._conditions, cond, len(x_t))
        own = guided and not isinstance(self.reference, Denoises)
        if len(self._models) == 1:
            said, found = self._ask(self._models[0], x_t, level, [*told, last] if own else told)
        else:
            each = [self._ask(m, x_t, level, [c]) for m, c in zip(self._models, told, strict=True)]
            said = [predictions[0] for predictions, _ in each]
            found = torch.cat([d for _, d in each if d is not None], 1) if self._needs_divergence else None
        parts, found = said[: self.count], None if found is None else found[:, : self.count]
        if not guided:
            return parts, None, found
        reference = said[-1] if own else self.reference(x_t, level, cond)  # type: ignore[operator, misc]
        return parts, reference, found  # type: ignore[return-value]

    @property
    def _needs_divergence(self) -> bool:
        return self._memory.ode and self.mode != "average"

    def _ask(self, model: Denoises, x_t: Tensor, level: Level, conds: list[Conditions]):
        if self._needs_divergence:
            return with_divergence(model, x_t, level, conds, self._memory.probes)
        return evaluate(model, x_t, level, conds), None

    def _conditions(self, cond: Conditions, batch: int) -> list[Conditions]:
        """What each model is told, and at last the reference, where that is the same denoiser."""
        told = [self._with(cond, own, batch) for own in self.conds or [{}] * self.count]
        own = self.reference if isinstance(self.reference, Mapping) else None
        return [*told, told[0].drop() if own is None else self._with(told[0], own, batch)]

    def _with(self, cond: Conditions, own: Mapping[str, Any], batch: int) -> Conditions:
        device = next((c.value.device for c in cond.values()), None)
        new = as_conditions(own, self.kinds, device)
        return Conditions({**cond, **{name: expand(c, batch, name) for name, c in new.items()}})

    # Weights

    def _kappa(
        self, parts: list[Prediction], reference: Prediction | None, divergences: Tensor | None, scale: Weight
    ) -> Tensor:
        """(B, M) float64."""
        x = parts[0].x_t
        if self.mode == "or":
            return self._softmax(x)
        if self.mode == "and" and divergences is not None:
            return self._along_ode(parts, reference, divergences, scale)
        return torch.full((len(x), self.count), 1.0 / self.count, dtype=torch.float64, device=x.device)

    def _softmax(self, x: Tensor) -> Tensor:
        log_prob = self._memory.log_prob
        if log_prob is None:
            log_prob = torch.zeros(len(x), self.count, dtype=torch.float64, device=x.device)
        if len(log_prob) != len(x):
            raise Incompatible(
                f"a superposition of {len(log_prob)} rows was asked for {len(x)}: wrap the models inside, not it"
            )
        prior = torch.tensor(self.log_weights or [0.0] * self.count, dtype=torch.float64, device=x.device)
        return (self.temperature * (log_prob + prior)).softmax(1)

    def _along_ode(
        self, parts: list[Prediction], reference: Prediction | None, divergences: Tensor, scale: Weight
    ) -> Tensor:
        """kappa for which ``<S, s_i> - |s_i|^2 - div s_i`` is the same for all i (but for the lift), S being the guided
        sum of the scores s_i: log q_i gains that times g^2/2 per unit of time."""
        s = torch.stack([p.score.double().flatten(1) for p in parts], 1)
        w = scale.to(s).reshape(-1, 1) if isinstance(scale, Tensor) else scale
        middle = w * s.mean(1)
        if reference is not None:
            middle = middle + (1.0 - w) * reference.score.double().flatten(1)
        gain = torch.einsum("bd,bmd->bm", middle, s) - s.square().sum(-1) - divergences
        wanted = self._lift_rate(gain) - gain
        delta = s[:, 1:] - s[:, :1]
        gram = torch.einsum("bid,bjd->bij", delta, delta)
        eps = torch.finfo(parts[0].x_t.dtype).eps
        c = solve(gram, wanted[:, 1:] - wanted[:, :1], s.square().sum((1, 2)), eps) / w
        return 1.0 / self.count + torch.cat([-c.sum(1, keepdim=True), c], 1)

    def _lift_rate(self, like: Tensor) -> Tensor:
        """What the rate of each log q is raised by, over ``g^2 / 2``."""
        lift, rate = self._memory.lift, self._memory.rate
        if lift is None or self.lift is None:
            return torch.zeros_like(like)
        rate = torch.as_tensor(rate, dtype=torch.float64).to(like.device).reshape(-1, 1)
        return torch.where(rate > 0.0, lift.to(like) / torch.where(rate > 0.0, rate, 1.0), 0.0)


def _by(scale: Weight, kappa: Tensor) -> Tensor:
    """``scale kappa`` for one model: (B,), or over more leading dimensions where the scale is."""
    if not isinstance(scale, Tensor):
        return scale * kappa
    return scale.to(kappa) * (kappa.reshape(-1, *(1,) * (scale.ndim - 1)) if scale.ndim > 1 else kappa)
