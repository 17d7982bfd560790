"""Guidance that a network has learned: it is told the scale, and answers in one call (Meng 2023; FLUX-dev)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.conditions import GUIDANCE, Condition, Conditions, GuidanceScale
from condiff.denoiser import Denoises
from condiff.errors import BadValue, Incompatible
from condiff.guidance.guided import Guided, States, Strength, check_denoiser, check_strength, first, strength
from condiff.process.algebra import Weight


@dataclass(frozen=True, eq=False, repr=False)
class Distilled(Guided):
    """A model that is told its guidance scale, at a scale: where :class:`Free` takes two evaluations, this takes one.

    Args:
        denoiser: a model with a scalar condition of this name, such as a distilled one.
        scale: number, (B,) per row, or a function of the level; 1 is the plain conditional model.
        name: of the condition.

    Raises:
        Incompatible: a model that isn't told a scale.
        BadValue: a scale outside the range that the network was trained for.

    Example:
        >>> sample(Distilled(student, scale=3.0), cond={"label": y}, solver=DDIM(), grid=DistilledGrid(4), steps=4)
    """

    denoiser: Denoises
    scale: Strength
    name: str = GUIDANCE

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser)
        check_strength(self.scale, "scale")
        if self.kinds.get(self.name) != "scalar":
            raise Incompatible(
                f"this model isn't told its guidance (it has no scalar condition {self.name!r}): use Free(model, scale)"
            )
        network: Any = getattr(self.denoiser, "network", None)
        spec: Any = getattr(getattr(network, "bank", None), "specs", {}).get(self.name)
        if isinstance(spec, GuidanceScale) and isinstance(self.scale, int | float):
            spec.check(self.scale)

    def predict(self, x_t: States, level: Any, cond: Conditions) -> Any:
        rows = first(x_t)
        some: Any = level if isinstance(x_t, Tensor) else next(iter(level.values()))
        if some is not level and callable(self.scale) and not isinstance(self.scale, Tensor):
            raise Incompatible("a model is told one scale for its whole state, not one per variable: give a number")
        value: Weight = strength(self.scale, some, rows)
        if isinstance(value, Tensor) and value.ndim > 1:
            raise BadValue(f"a model is told one scale per row, got a scale of shape {tuple(value.shape)}")
        scale = torch.as_tensor(value, dtype=torch.float32, device=rows.device).expand(rows.shape[:1])
        return self.denoiser(x_t, level, cond.replace(**{self.name: Condition(scale, "scalar")}))
