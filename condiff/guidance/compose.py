"""Several denoisers as one: weighted sums, products of experts, a weaker model as guide, experts by time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible, unknown
from condiff.guidance.combine import added, check_sum, expand
from condiff.guidance.guided import Guided, States, Strength, always, check_denoiser, check_strength, first, strength
from condiff.process import KINDS
from condiff.process.algebra import Weight


@dataclass(frozen=True, eq=False, repr=False)
class Blend(Guided):
    """``sum_i weight_i denoiser_i(x_t)``.

    Args:
        denoisers: of one process, each told all conditions (see :class:`Given` to choose).
        weights: one per denoiser: numbers, per row (B,), or functions of the level. They sum to 1 unless ``kind``
            is given. A denoiser whose weight is the number 0 isn't called.
        kind: the quantity that is added.

    Raises:
        Incompatible: denoisers of different processes.
        BadValue: another number of weights, weights that don't sum to 1 without ``kind``.
    """

    denoisers: Sequence[Denoises]
    weights: Sequence[Strength]
    kind: str | None = None

    def __post_init__(self) -> None:
        check_members(self.denoisers)
        if len(self.weights) != len(self.denoisers):
            raise BadValue(f"{len(self.denoisers)} denoisers need as many weights, got {len(self.weights)}")
        for weight in self.weights:
            check_strength(weight, "weights")
        if self.kind is not None and self.kind not in KINDS:
            raise unknown("prediction", self.kind, KINDS)

    @property
    def members(self) -> tuple[Denoises, ...]:
        return tuple(self.denoisers)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        weights = [strength(w, level, x_t) for w in self.weights]
        check_sum(weights, self.kind)
        active = [i for i, w in enumerate(weights) if not always(w, 0.0)]
        if not active:
            raise BadValue("all weights are 0: nothing to evaluate")
        said = [self.denoisers[i](x_t, level, cond) for i in active]
        return added(said, [weights[i] for i in active], self.kind)


def product(denoisers: Sequence[Denoises], powers: Sequence[Strength] | None = None) -> Blend:
    """Scores added: at each level, the law proportional to ``prod_i p_i(x_t)^power_i`` (powers 1 by default)."""
    return Blend(denoisers, [1.0] * len(denoisers) if powers is None else powers, kind="score")


def auto(denoiser: Denoises, weaker: Denoises, scale: Strength) -> Blend:
    """Guidance by a weaker version of the model (Karras 2024): ``weaker + scale (denoiser - weaker)``."""
    check_strength(scale, "scale")
    if callable(scale) and not isinstance(scale, Tensor):
        return Blend([denoiser, weaker], [scale, lambda level: 1.0 - scale(level)])
    return Blend([denoiser, weaker], [scale, 1.0 - scale])  # type: ignore[operator]


@dataclass(frozen=True, eq=False, repr=False)
class Switch(Guided):
    """Experts by time: denoiser i answers for ``at[i-1] <= t < at[i]``.

    Args:
        denoisers: from the data side (t = 0) to the noise side (t = 1), of one process.
        at: the times between them, increasing.

    With a time per row or per frame each expert in use is called on the whole batch.
    """

    denoisers: Sequence[Denoises]
    at: Sequence[float]

    def __post_init__(self) -> None:
        check_members(self.denoisers)
        times = [0.0, *self.at, 1.0]
        if len(self.at) != len(self.denoisers) - 1 or any(b <= a for a, b in itertools.pairwise(times)):
            raise BadValue(
                f"{len(self.denoisers)} denoisers need {len(self.denoisers) - 1} increasing times in (0, 1), "
                f"got {self.at}"
            )

    @property
    def members(self) -> tuple[Denoises, ...]:
        return tuple(self.denoisers)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        if isinstance(level, dict):
            raise Incompatible("Switch chooses by one time, but the variables of a joint state have one each")
        if not isinstance(level.t, Tensor):
            return self.denoisers[sum(level.t >= a for a in self.at)](x_t, level, cond)
        index = torch.bucketize(level.t, torch.tensor(self.at, dtype=torch.float64, device=level.t.device), right=True)
        used = index.unique().tolist()
        said = [self.denoisers[i](x_t, level, cond) for i in used]
        weights: list[Weight] = [(index == i).double() for i in used]
        return added(said, weights, None) if len(said) > 1 else said[0]


@dataclass(frozen=True, eq=False, repr=False)
class Given(Guided):
    """A denoiser with conditions bound to it: ``Given(model, {"text": a})``.

    Args:
        denoiser: what is called.
        cond: entries it is told always, in place of the caller's of the same names; one row serves all.
        only: the names of the caller's conditions that it is told; None for all, ``()`` for none.
    """

    denoiser: Denoises
    cond: Mapping[str, Any] | None = None
    only: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        if isinstance(self.only, str):
            raise BadValue(f"only= is a list of names, such as ({self.only!r},)")

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        passed = {n: c for n, c in cond.items() if self.only is None or n in self.only}
        bound = as_conditions(self.cond, self.kinds, first(x_t).device)
        bound = {n: expand(c, first(x_t).shape[0], n) for n, c in bound.items()}
        return self.denoiser(x_t, level, Conditions({**passed, **bound}))


def check_members(denoisers: Sequence[Denoises]) -> None:
    """
    Raises:
        BadValue: no denoisers.
        Incompatible: different processes, or latents of different autoencoders.
    """
    if not denoisers:
        raise BadValue("at least one denoiser is needed")
    for denoiser in denoisers:
        check_denoiser(denoiser)
    first = denoisers[0].process
    for other in denoisers[1:]:
        if other.process is not first and other.process != first:
            raise Incompatible(
                f"denoisers of different processes can't be combined: {first} and {other.process}; re-time one of them"
            )
    spaces = sorted({space for d in denoisers if (space := getattr(d, "space", None)) is not None})
    if len(spaces) > 1:
        raise Incompatible(f"denoisers of different latents can't be combined: {' and '.join(spaces)}")
