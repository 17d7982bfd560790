"""ImplicitDDIM: the exact inverse of a DDIM step, found as a fixed point; for inversion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible, NonFinite, unknown
from condiff.process.algebra import Weight, combine, holds
from condiff.process.level import Level
from condiff.process.prediction import Prediction
from condiff.sampling.solver import Solver, State

RULES = ("picard", "anderson", "adamw")
ROUNDING = 4.0
FLOOR = 1e-12  # of Anderson's normal equations, relative to their diagonal


class Weights(NamedTuple):
    state: Weight
    noise: Weight
    source: Weight


@dataclass(frozen=True)
class ImplicitDDIM(Solver):
    """``x_t = A x_s + B noise(x_t, t)`` for x_t, from s up to t: ``A = data_t / data_s``, ``B = noise_t - A noise_s``.

    DDIM sampling from t to s with the noise that is predicted *at* ``x_t`` leads back to ``x_s`` exactly; DDIM
    inversion predicts it at ``x_s`` and drifts (Pan 2023, AIDI; Li 2024, SPDInv). The first guess is DDIM's with
    ``noise(x_s, t)``; k iterations of Picard's rule then make the round trip one of order k + 1. With ``invert``::

        found = invert(model, x, solver=ImplicitDDIM(), grid=Uniform(start=0.99), steps=50, cond=cond)
        again = sample(model, initial=found.latent, grid=found.times.flip(0), solver=DDIM(), cond=cond)

    Hooks act on every prediction, so that a correction of the noise becomes part of the equation. The residuals, root
    mean squares of ``r(x) - x`` per row and iteration, stand in ``state.extra["residuals"]``, (steps, iterations, B).

    Args:
        iterations: K, evaluations beside the first one; 0 is DDIM inversion.
        rule: ``"picard"``, ``x <- r(x) = A x_s + B noise(x, t)``, converges where the noise changes slowly;
            ``"anderson"`` mixes the last iterates, which converges faster and where Picard's rule doesn't;
            ``"adamw"`` minimises ``mean (x - r(x))^2`` through the network, as SPDInv and DCI were released.
        history: iterates that Anderson's rule mixes.
        tolerance: an iteration stops the step when all residuals are below it, or as small as rounding errors.
        lr, weight_decay: of AdamW; the released code has a weight decay of 0.01, which only moves the latents, and
            stops at ``tolerance=5e-6**0.5``.

    Raises:
        BadValue: numbers out of range, an unknown rule.
        Incompatible: a grid that goes down, or begins or ends without data (at pure noise every state is a fixed
            point).
        NonFinite: iterations that diverge, with the time of the step.
    """

    iterations: int = 10
    rule: str = "picard"
    history: int = 3
    tolerance: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or self.iterations < 0:
            raise BadValue(f"iterations must be at least 0, got {self.iterations}")
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)
        if self.history < 1 or not self.tolerance >= 0.0 or not self.lr > 0.0 or not self.weight_decay >= 0.0:
            raise BadValue(f"history >= 1, tolerance >= 0, lr > 0 and weight_decay >= 0 are wanted, got {self}")

    def plan(self, levels: Sequence[Level]) -> list[Weights]:
        if self.iterations and not holds(levels[-1].data > 0.0):
            raise Incompatible(
                f"at t = {levels[-1].t} a state is pure noise, so that no fixed point leads back from it: begin the "
                "grid before, such as grid=Uniform(start=0.99)"
            )
        return [self._weights(s, t) for s, t in itertools.pairwise(levels)]

    @staticmethod
    def _weights(s: Level, t: Level) -> Weights:
        if not holds(t.t >= s.t) or not holds(s.data > 0.0):
            raise Incompatible("ImplicitDDIM is for invert(), from data towards noise; sample with DDIM()")
        ratio = t.data / s.data
        return Weights(ratio, t.noise - ratio * s.noise, t.source - ratio * s.source)

    def step(self, x: Tensor, c: Weights, state: State, run: Any) -> tuple[Tensor, Prediction, Tensor | None]:
        first = run.denoise(x, run.s)

        def next_of(said: Prediction) -> Tensor:
            moved = combine((c.state, x), (c.noise, said.noise))
            return moved if said.source is None else combine((1.0, moved), (c.source, said.source))

        y, residuals = next_of(first), []
        solve = _AdamW(self) if self.rule == "adamw" else _Mixing(self.history if self.rule == "anderson" else 1)
        for _ in range(self.iterations):
            y, residual = solve(y, lambda v: next_of(run.denoise(v, run.s)))
            residuals.append(residual)
            floor = ROUNDING * torch.finfo(y.dtype).eps * _rms(y)  # nearer than that rounding lets nothing come
            if bool((residual <= torch.clamp(floor, min=self.tolerance)).all()):
                break
            self._check(residuals, floor, run)
        state.extra.setdefault("residuals", []).append(residuals)
        y, _, _ = self.finish(x, y, 0.0, first, run)
        return y, first, None

    def _check(self, residuals: list[Tensor], floor: Tensor, run: Any) -> None:
        last, start = residuals[-1], torch.maximum(residuals[0], floor)  # a row that began at its fixed point
        grown = self.rule != "adamw" and bool((last > 10.0 * start).any())  # AdamW's first steps are of length lr
        if grown or not bool(torch.isfinite(last).all()):
            raise NonFinite(
                f"the fixed point of the step to t = {run.s.t} isn't reached: residuals went from "
                f"{float(start.max()):.3g} to {float(last.max()):.3g}. More steps make each one easier, and so does "
                'rule="anderson"'
            )


def _rms(x: Tensor) -> Tensor:
    return x.detach().double().flatten(1).square().mean(1).sqrt()


class _Mixing:
    """Anderson's mixing of the last iterates, per row: the affine combination whose residual is least. Of one iterate
    it is Picard's rule."""

    def __init__(self, history: int) -> None:
        self.history = history
        self.images: list[Tensor] = []
        self.gaps: list[Tensor] = []

    def __call__(self, y: Tensor, image_of: Any) -> tuple[Tensor, Tensor]:
        image = image_of(y)
        gap = image - y
        self.images = [image, *self.images][: self.history]
        self.gaps = [gap.flatten(1), *self.gaps][: self.history]
        if len(self.gaps) == 1:
            return image, _rms(gap)
        gaps = torch.stack(self.gaps, 1).double()
        gram = gaps @ gaps.mT
        size = gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=torch.finfo(gram.dtype).tiny)
        rounding = (ROUNDING * torch.finfo(y.dtype).eps * _rms(y)) ** 2 * gaps.shape[-1]  # of a gap, squared
        eye = torch.eye(len(self.gaps), dtype=gram.dtype, device=gram.device)
        scaled = gram / size[:, None, None] + (FLOOR + rounding / size)[:, None, None] * eye
        weights = torch.linalg.solve(scaled, torch.ones_like(scaled[..., 0]))
        weights = weights / weights.sum(1, keepdim=True)
        mixed = torch.einsum("bk,bk...->b...", weights.to(image.dtype), torch.stack(self.images, 1))
        return mixed, _rms(gap)


class _AdamW:
    """AdamW on ``mean (y - r(y))^2`` of each row, with gradients through the network; a fresh state a step."""

    def __init__(self, rule: ImplicitDDIM) -> None:
        self.rule = rule
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, y: Tensor, image_of: Any) -> tuple[Tensor, Tensor]:
        if self.optimizer is None:
            self.free = y.detach().clone().requires_grad_()
            self.optimizer = torch.optim.AdamW([self.free], lr=self.rule.lr, weight_decay=self.rule.weight_decay)
        with torch.enable_grad():
            gap = self.free - image_of(self.free)
            loss = gap.flatten(1).square().mean(1).sum()
            (self.free.grad,) = torch.autograd.grad(loss, [self.free])
        self.optimizer.step()
        return self.free.detach().clone(), _rms(gap)
