"""Classifier-free guidance (Ho & Salimans 2022) with what people add to it.

``s = s(x_t | reference) + scale (s(x_t | c) - s(x_t | reference))``. The scale is canonical: 1 is plain
conditional, 0 the reference alone, and ``w`` of papers that write ``(1 + w) s_c - w s_u`` is ``scale - 1``.
The reference is the model without its conditions, or with a negative condition. Both are one batched call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, cat
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance.combine import FREE_KINDS, Term, added
from condiff.guidance.guided import (
    Guided,
    Remembered,
    States,
    Strength,
    always,
    check_denoiser,
    check_interval,
    check_strength,
    evaluate,
    first,
    strength,
)
from condiff.process import Prediction


@dataclass(frozen=True, eq=False, repr=False)
class Free(Guided):
    """Classifier-free guidance in one batched call.

    Args:
        denoiser: a conditional model that was trained with absent conditions as well.
        scale: number, (B,) per row, (B, F) or (1, F) per frame, or a function of the level.
        interval: guide for low <= t <= high only (Kynkaanniemi 2024); outside, and wherever the scale is the
            number 1, the model is called without the reference.
        rescale: between 0 and 1, how much of the guided output's standard deviation, per sample and in the
            model's own quantity, is brought back to that of the conditional one (Lin 2023, eq. 15-16).
        negative: conditions of the reference in place of the caller's of the same names; one row serves all.
        drop: names that the reference isn't told. By default all droppable ones, and none with ``negative``.

    Raises:
        BadValue: values out of their range, names that aren't among the conditions, no conditions at all.

    Example:
        >>> guided = Free(model, scale=2.0, interval=(0.1, 0.8))
        >>> sample(guided, cond={"label": y}, solver=Euler(), steps=20)
    """

    denoiser: Denoises
    scale: Strength
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    negative: Mapping[str, Any] | None = None
    drop: Sequence[str] | None = None
    _told: Remembered = field(default_factory=Remembered, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        check_strength(self.scale, "scale")
        check_interval(self.interval)
        if not 0.0 <= self.rescale <= 1.0:
            raise BadValue(f"rescale must lie in [0, 1], got {self.rescale}")
        if self.negative is not None and not isinstance(self.negative, Mapping):
            raise BadType(f"negative= takes conditions, such as {{'label': y}}, got {self.negative!r}")
        if isinstance(self.drop, str):
            raise BadValue(f"drop= is a list of names, such as ({self.drop!r},)")

    @property
    def time_free(self) -> bool:
        """Whether what it says of tokens is the same at all times, and of each row whatever the others: then samplers
        may reuse it."""
        always_so = isinstance(self.scale, int | float) and self.interval is None and self.negative is None
        return always_so and getattr(self.denoiser, "time_free", False)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        scale = strength(self.scale, level, x_t, 1.0, self.interval)
        if always(scale, 1.0):
            return self.denoiser(x_t, level, cond)
        pair, joined = self._told(self._pair, cond, first(x_t).shape[0])
        if always(scale, 0.0):
            return self.denoiser(x_t, level, pair[1])
        said = evaluate(self.denoiser, x_t, level, pair, joined)
        rest = {k: 1.0 - w for k, w in scale.items()} if isinstance(scale, dict) else 1.0 - scale
        out = added(said, [scale, rest], None)
        return rescaled(out, said[0], self.rescale) if self.rescale else out

    def branches(self, cond: Conditions, batch: int) -> list[Conditions]:
        """The conditions under which the model is evaluated, in the order of the batched call: those that the caller
        gives and the reference, or one of them at the scales 1 and 0."""
        if not isinstance(self.scale, Tensor) and self.scale == 1.0:
            return [cond]
        pair = self._told(self._pair, cond, batch)[0]
        return pair[1:] if not isinstance(self.scale, Tensor) and self.scale == 0.0 else pair

    def _pair(self, cond: Conditions, batch: int) -> tuple[list[Conditions], Conditions]:
        if not cond:
            raise BadValue("classifier-free guidance needs conditions: give cond=, or scale=1")
        names = self.drop
        if names is None:
            names = () if self.negative is not None else None
        if names is None and all(c.kind in FREE_KINDS for c in cond.values()):
            raise BadValue(
                f"classifier-free guidance leaves out conditions, but {', '.join(cond)} belong to the process or the "
                "model: name one in drop= if the model was trained without it"
            )
        reference = cond.drop() if names is None else Term(weight=1.0, drop=names).told(cond, batch, {})
        if self.negative is not None:
            reference = Term(weight=1.0, replace=self.negative).told(reference, batch, self.kinds)
        return [cond, reference], cat([cond, reference])


def rescaled(guided: Any, plain: Any, amount: float) -> Any:
    """``amount std(plain) / std(guided) + (1 - amount)`` times the guided output, per sample (Lin 2023)."""
    if isinstance(guided, dict):
        return {name: rescaled(one, plain[name], amount) for name, one in guided.items()}
    if not isinstance(guided, Prediction):
        raise Incompatible("rescale= is for continuous states; tokens have no standard deviation")
    # Without an endpoint the first quantity says all; two fields are independent of each other.
    kinds = list(guided.values)[: None if guided.level.process.has_source else 1]
    values = {kind: _rescaled(guided.values[kind], plain.to(kind), amount) for kind in kinds}
    return Prediction(guided.x_t, guided.level, values, guided.source, guided.aux)


def _rescaled(out: Tensor, reference: Tensor, amount: float) -> Tensor:
    std, wanted = (v.flatten(1).std(1, correction=0) for v in (out, reference))
    ratio = torch.where(std > 0.0, wanted / torch.where(std > 0.0, std, 1.0), 1.0)
    factor = (amount * ratio + (1.0 - amount)).reshape(-1, *(1,) * (out.ndim - 1))
    return out * factor
