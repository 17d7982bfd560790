"""Proximal guidance: only the large differences between two conditions guide (Han 2023, 2306.05414)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Conditions, cat
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, unknown
from condiff.guidance.combine import Term
from condiff.guidance.guided import (
    Guided,
    Remembered,
    States,
    Strength,
    check_denoiser,
    check_one_state,
    check_strength,
    evaluate,
    strength,
)
from condiff.process import Prediction
from condiff.process.algebra import row_quantile
from condiff.process.algebra import scale as scaled

MODES = ("soft", "hard")


@dataclass(frozen=True, eq=False, repr=False)
class Proximal(Guided):
    """``said(x_t | source) + scale S_q(said(x_t | c) - said(x_t | source))``, in one batched call.

    S_q keeps what exceeds q in absolute value, q the ``quantile`` of the difference's absolute values in each sample:
    ``"hard"`` as it is (the proximal map of l0), ``"soft"`` shrunk by q (that of l1, and what the released "l0" does).
    With the source's own condition as the reference (negative-prompt inversion, Miyake 2023), where nothing has to
    change nothing does. Of several predicted quantities each is treated so. ``aux["difference"]`` is what S_q left of
    the first one, ``aux["threshold"]`` its q, per sample.

    Args:
        denoiser: a conditional model.
        scale: number, (B,) per row, or a function of the level; 0 is the reference alone.
        source: conditions of the reference, in place of the caller's of the same names; one row serves all.
        quantile: between 0 (plain guidance) and 1 (no guidance). Published editing takes 0.7 over a batch of source and
            target, half of whose differences are zero: 0.4 of the target alone.
        mode: ``"soft"`` or ``"hard"``.

    Raises:
        BadValue: numbers out of range, an unknown mode, names that aren't among the conditions.
        Incompatible: tokens or joint states.
    """

    denoiser: Denoises
    scale: Strength
    source: Mapping[str, Any]
    quantile: float = 0.4
    mode: str = "soft"
    _told: Remembered = field(default_factory=Remembered, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        check_strength(self.scale, "scale")
        check_one_state(self.process, "proximal guidance, which compares values,")
        if not isinstance(self.source, Mapping):
            raise BadType(f"source= takes conditions, such as {{'label': y}}, got {self.source!r}")
        if not 0.0 <= self.quantile <= 1.0:
            raise BadValue(f"quantile must lie in [0, 1], got {self.quantile}")
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Prediction:
        pair, joined = self._told(self._pair, cond, len(x_t))
        wanted, reference = evaluate(self.denoiser, x_t, level, pair, joined)
        weight = strength(self.scale, level, x_t)
        values, found = {}, []
        for kind, base in reference.values.items():
            found.append(self.shrunk(wanted.to(kind) - base))
            values[kind] = base + scaled(weight, found[-1][0])
        left, threshold = found[0]
        aux = {**reference.aux, "difference": left, "threshold": threshold}
        return Prediction(reference.x_t, reference.level, values, reference.source, aux)

    def shrunk(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """``(S_q(difference), q)``, with q (B,)."""
        size = difference.abs()
        if self.quantile == 0.0:  # nothing is small enough to be left out, not even the smallest
            return difference, size.new_zeros(len(size))
        q = row_quantile(size.flatten(1), self.quantile)
        limit = q.reshape(-1, *(1,) * (difference.ndim - 1))
        kept = difference if self.mode == "hard" else difference.sign() * (size - limit)
        return torch.where(size > limit, kept, 0.0), q

    def _pair(self, cond: Conditions, batch: int) -> tuple[list[Conditions], Conditions]:
        reference = Term(weight=1.0, replace=self.source).told(cond, batch, self.kinds)
        return [cond, reference], cat([cond, reference])
