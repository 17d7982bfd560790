"""Residual guidance: the reference is not evaluated but known, because it is told where it leads (Kodaira 2023).

Classifier-free guidance pushes away from what the model says without the prompt. Where there is an input z, such as the
picture that is to be translated, the noise ``R = (x_t - data z) / noise`` that would explain the state by the input
serves in its place: the answer is pushed away from the input, towards the prompt, for no evaluation at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import Condition, Conditions, cat
from condiff.denoiser import Denoises
from condiff.errors import BadType, BadValue, Incompatible
from condiff.guidance.combine import Term
from condiff.guidance.guided import (
    Guided,
    States,
    Strength,
    always,
    check_denoiser,
    check_one_state,
    check_strength,
    strength,
)
from condiff.process import Level, Prediction
from condiff.process.algebra import combine, divide, holds

ANCHOR = "anchor"  # the condition that tells where the reference leads


@dataclass(frozen=True, eq=False, repr=False)
class Anchored(Guided):
    """``e = delta R + scale (e(x_t | c) - delta R)`` with ``R = (x_t - data z) / noise`` (Kodaira 2023).

    The anchor z is the condition ``"anchor"``, of the state's shape: the input of a translation, or zeros where there
    is none. Rows without one get the clean sample that the model predicts there under the ``negative`` conditions, from
    the same batched call, and keep it for the rest of the trajectory (one evaluation more in all, "initialize" in the
    paper). ``aux["anchor"]`` are the anchors of all rows.

    R is worked out from the state, in float32 at least, and not carried along. That is the paper's recursion, which
    holds z fixed without naming it; it fits every solver, whether or not it adds noise, and every boundary condition.

    Args:
        denoiser: a conditional model, on a process without an endpoint.
        scale: number, (B,) per row, or a function of the level. 1 is the model as it is; below 1 there is a warning,
            because the answer is then drawn to the anchor.
        delta: share of R; with 0 the model's noise is only scaled.
        negative: what the model is told where it has to find the anchor; an empty mapping tells it nothing.

    Raises:
        BadValue: rows without an anchor, and no ``negative``; an anchor of another shape.
        Incompatible: tokens, joint states, processes with an endpoint.

    Example:
        >>> guided = Anchored(model, scale=1.4)
        >>> sample(guided, cond={"label": y, "anchor": z}, initial=noisy, grid=[0.4, 0.1, 0.0], solver=Consistency())
    """

    denoiser: Denoises
    scale: Strength = 1.2
    delta: float = 1.0
    negative: Mapping[str, Any] | None = None
    _found: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        check_strength(self.scale, "scale")
        check_one_state(self.process, "residual guidance")
        if self.negative is not None and not isinstance(self.negative, Mapping):
            raise BadType(f"negative= takes conditions, such as {{'label': y}}, got {self.negative!r}")
        if getattr(self.denoiser.process, "has_source", False):
            raise Incompatible(
                f"residual guidance explains a state by noise, and {self.denoiser.process} has an endpoint"
            )
        if isinstance(self.scale, int | float) and self.scale < 1.0:
            warnings.warn(
                f"a scale of {self.scale} below 1 draws the answer to the anchor, not to the prompt", stacklevel=3
            )

    @property
    def kinds(self) -> dict[str, str]:
        """Those of the model, and the anchor's."""
        return {**super().kinds, ANCHOR: "map"}

    def start(self) -> None:
        """Forget the anchors of the last trajectory."""
        super().start()
        self._found.clear()

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Prediction:
        told = Conditions({name: entry for name, entry in cond.items() if name != ANCHOR})
        scale = strength(self.scale, level, x_t)
        if always(scale, 1.0):
            return self.denoiser(x_t, level, told)
        anchor, missing = self._anchor(x_t, cond.get(ANCHOR))
        if missing is None:
            said, reference = self.denoiser(x_t, level, told), residual_noise(x_t, level, anchor)
        else:
            said, reference, anchor = self._look(x_t, level, told, anchor, missing)
        if self.delta == 1.0 and not holds(level.data > 0.0):  # pure noise says nothing of x0, but both x0 are known
            x0 = combine((scale, said.x0.to(anchor.dtype)), (1.0 - scale, anchor))
            return said.set("x0", x0.to(x_t.dtype), **{ANCHOR: anchor})
        noise = combine((scale, said.noise.to(reference.dtype)), ((1.0 - scale) * self.delta, reference))
        return said.set("noise", noise.to(x_t.dtype), **{ANCHOR: anchor})

    def _anchor(self, x_t: Tensor, entry: Condition | None) -> tuple[Tensor, Tensor | None]:
        """The anchors, and the indices of the rows that have none yet."""
        rows = torch.arange(len(x_t), device=x_t.device)
        if entry is None:
            known = self._found[0] if self._found else torch.zeros_like(x_t, dtype=wide(x_t.dtype))
            missing = None if self._found else rows
        else:
            known, missing = entry.value, None if entry.keep is None else rows[~entry.keep.to(x_t.device)]
        if known.shape != x_t.shape:
            raise BadValue(f"an anchor of shape {tuple(known.shape)} came to a state of shape {tuple(x_t.shape)}")
        missing = None if missing is None or not len(missing) else missing
        if missing is not None and self.negative is None:
            raise BadValue(
                f"residual guidance needs the condition {ANCHOR!r}, the clean sample that it leads away from, or "
                "negative=, the conditions under which the model says which"
            )
        return known, missing

    def _look(
        self, x_t: Tensor, level: Level, told: Conditions, anchor: Tensor, missing: Tensor
    ) -> tuple[Prediction, Tensor, Tensor]:
        """What is said of all rows, and under the negative conditions of those without an anchor: one call."""
        count, negative = len(x_t), self._reference(told, len(x_t)).rows(missing)
        index = torch.cat([torch.arange(count, device=x_t.device), missing])
        both = self.denoiser(x_t[index], level.rows(index), cat([told, negative]))
        said, other = both.part(slice(0, count), level), both.part(slice(count, None), level.rows(missing))
        anchor = anchor.to(wide(x_t.dtype)).index_copy(0, missing, other.x0.to(wide(x_t.dtype)))
        reference = residual_noise(x_t, level, anchor).index_copy(0, missing, other.noise.to(wide(x_t.dtype)))
        if len(missing) == count:
            self._found[:] = [anchor]
        return said, reference, anchor

    def _reference(self, told: Conditions, batch: int) -> Conditions:
        if not self.negative:
            return told.drop() if told else told
        return Term(weight=1.0, replace=self.negative).told(told, batch, self.kinds)


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or the dtype itself where that is wider: noise levels are small where residuals are large."""
    return torch.promote_types(dtype, torch.float32)


def residual_noise(x_t: Tensor, level: Level, anchor: Tensor) -> Tensor:
    """``(x_t - data anchor) / noise``, the noise that explains the state if the clean sample is the anchor.

    At least float32. Between two levels it moves by ``R_s = z + (data_s / noise_s) (x0 - anchor)`` where
    ``x_s = data_s x0 + noise_s z``.
    """
    dtype = wide(x_t.dtype)
    return combine(
        (divide(1.0, level.noise), x_t.to(dtype)), (-1.0 * divide(level.data, level.noise), anchor.to(dtype))
    )
