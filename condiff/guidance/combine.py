"""Linear combinations of one denoiser's answers to several conditions, in one batched call.

``sum_i weight_i prediction(x_t | condition_i)``: classifier-free guidance, negative conditions, nested scales.
With weights that sum to 1 it doesn't matter in which quantity predictions are added (all are affine in each other);
other sums need ``kind``, the quantity that is meant. For tokens the weights are powers: ``prod_i p_i(token)^weight_i``,
normalised. The variables of a joint state are combined one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from condiff.conditions import BELONGING, Condition, Conditions, as_conditions, cat
from condiff.denoiser import Denoises
from condiff.errors import BadValue, unknown
from condiff.guidance.guided import (
    Guided,
    Remembered,
    States,
    Strength,
    always,
    check_denoiser,
    check_strength,
    evaluate,
    first,
    strength,
)
from condiff.process import KINDS, Level, TokenPrediction, mix, mix_tokens
from condiff.process.algebra import holds

FREE_KINDS = BELONGING  # never dropped unless named


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """One evaluation: its weight, and what it is told of the caller's conditions.

    Args:
        weight: number, per row, or function of the level.
        keep: the names that stay, all other droppable ones are flagged absent. None: all stay.
        drop: names to flag absent.
        replace: entries put in place of the caller's (a negative prompt). A batch of 1 serves every row.
    """

    weight: Strength
    keep: Sequence[str] | None = None
    drop: Sequence[str] = ()
    replace: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_strength(self.weight, "weight")
        if self.keep is not None and self.drop:
            raise BadValue("a term has either keep= or drop=")
        if isinstance(self.keep, str) or isinstance(self.drop, str):
            raise BadValue("keep= and drop= are lists of names, such as ('label',)")

    def told(self, cond: Conditions, batch: int, kinds: Mapping[str, str]) -> Conditions:
        """The conditions of this evaluation.

        Raises:
            BadValue: a name that isn't among the conditions.
        """
        for name in self.keep or ():
            if name not in cond:
                raise unknown("condition", name, cond)
        gone = [n for n, c in cond.items() if c.kind not in FREE_KINDS and n not in (self.keep or ())]
        names = self.drop if self.keep is None else gone
        out = cond.drop(*names) if names else cond
        return replaced(out, self.replace, batch, kinds) if self.replace is not None else out


def replaced(cond: Conditions, entries: Mapping[str, Any], batch: int, kinds: Mapping[str, str]) -> Conditions:
    """``cond`` with some of its entries replaced; a batch of 1 is expanded to all rows.

    Raises:
        BadValue: names that ``cond`` doesn't have, or an entry of another kind or batch size.
    """
    known = {**kinds, **{n: c.kind for n, c in cond.items()}}
    device = next((c.value.device for c in cond.values()), None)
    new = {n: expand(c, batch, n) for n, c in as_conditions(entries, known, device).items()}
    for name, entry in new.items():
        if name not in cond:
            raise unknown("condition", name, cond)
        if entry.kind != cond[name].kind:
            raise BadValue(f"condition {name!r} is a {cond[name].kind!r}, its replacement a {entry.kind!r}")
    return cond.replace(**new)


def expand(entry: Condition, batch: int, name: str) -> Condition:
    if entry.batch == batch:
        return entry
    if entry.batch != 1:
        raise BadValue(f"condition {name!r} has {entry.batch} rows where 1 or {batch} are needed")
    return entry.map(lambda v: v.expand(batch, *v.shape[1:]))


@dataclass(frozen=True, eq=False, repr=False)
class Combine(Guided):
    """``sum_i weight_i prediction_i`` over :class:`Term` evaluations of one denoiser, in one call.

    A term whose weight is the number 0 is not evaluated.

    Args:
        denoiser: what is evaluated.
        terms: the evaluations; their weights sum to 1 unless ``kind`` is given.
        kind: the quantity to add, for weights that don't sum to 1 (``"score"`` for products of densities).

    Raises:
        BadValue: weights that don't sum to 1 without a ``kind``, unknown kinds or conditions.

    Example:
        >>> # what the label says beyond the text, twice: joint-off guidance
        >>> Combine(model, [Term(weight=2.0), Term(weight=-1.0, drop=("label",))])
    """

    denoiser: Denoises
    terms: Sequence[Term]
    kind: str | None = None
    _told: Remembered = field(default_factory=Remembered, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        if not self.terms:
            raise BadValue("Combine needs at least one term")
        if self.kind is not None and self.kind not in KINDS:
            raise unknown("prediction", self.kind, KINDS)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        weights = [strength(term.weight, level, x_t) for term in self.terms]
        check_sum(weights, self.kind)
        batch = first(x_t).shape[0]
        told = self._told(lambda c, b: [term.told(c, b, self.kinds) for term in self.terms], cond, batch)
        active = [i for i, w in enumerate(weights) if not always(w, 0.0)]
        if not active:
            raise BadValue("all weights are 0: nothing to evaluate")
        conds = [told[i] for i in active]
        said = evaluate(self.denoiser, x_t, level, conds, cat(conds) if len(conds) > 1 else None)
        return added(said, [weights[i] for i in active], self.kind)


def check_sum(weights: Sequence[Any], kind: str | None) -> None:
    """Refuse weights that don't sum to 1 when no quantity is named."""
    if kind is not None:
        return
    if isinstance(weights[0], dict):
        for name in weights[0]:
            check_sum([w[name] for w in weights], kind)
        return
    total = sum(weights)
    if not holds(abs(total - 1.0) < 1e-6):
        raise BadValue(f"weights must sum to 1, got {total}; say kind= (such as 'score') to add that quantity as it is")


def added(said: list[Any], weights: list[Any], kind: str | None) -> Any:
    """The weighted sum; side outputs are those of the first, the parts are in ``aux['parts']``."""
    if isinstance(said[0], dict):
        return {
            k: added([p[k] for p in said], [w[k] if isinstance(w, dict) else w for w in weights], kind) for k in said[0]
        }
    if len(said) == 1 and always(weights[0], 1.0):
        return said[0]
    out = mix_tokens(said, weights) if isinstance(said[0], TokenPrediction) else mix(said, weights, kind)
    out.aux = {**said[0].aux, **out.aux}
    return out


def nested(denoiser: Denoises, scales: Mapping[str, Strength]) -> Combine:
    """Conditions added one after the other, each with its own scale (InstructPix2Pix, eq. 3; two-scale video):

    ``s() + scale_1 (s(c_1) - s()) + scale_2 (s(c_1, c_2) - s(c_1)) + ...``; all scales 1 is plain conditional.

    Args:
        denoiser: what is guided, in one call of ``len(scales) + 1`` copies.
        scales: names of conditions with their scales, in the order in which they are added. Conditions that
            are not named are always told.

    Example:
        >>> nested(model, {"image": 1.5, "text": 7.5})
    """
    names = list(scales)
    if not names:
        raise BadValue("nested guidance needs at least one named scale")
    for name in names:
        check_strength(scales[name], f"scale of {name!r}")
    values = [1.0, *(scales[name] for name in names), 0.0]
    terms = [Term(weight=_difference(values[i], values[i + 1]), drop=tuple(names[i:])) for i in range(len(names) + 1)]
    # Conditions all told come first: their side outputs are those of the result.
    return Combine(denoiser, terms[::-1])


def _difference(a: Strength, b: Strength) -> Strength:
    def value(s: Strength, level: Level) -> Any:
        return s(level) if callable(s) and not isinstance(s, Tensor) else s

    if (callable(a) and not isinstance(a, Tensor)) or (callable(b) and not isinstance(b, Tensor)):
        return lambda level: value(a, level) - value(b, level)
    return a - b  # type: ignore[operator]
