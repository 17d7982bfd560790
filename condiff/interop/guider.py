"""Guider: guidance of condiff where a modular pipeline of diffusers expects a guider.

A guider says which evaluations a step needs and combines what comes of them. The guidance is asked twice: once with a
model that only notes what it is asked, and once with one that answers. This module needs diffusers;
:func:`condiff.interop.as_guider` imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from condiff.conditions import Condition, Conditions
from condiff.denoiser import Denoises
from condiff.errors import Incompatible
from condiff.interop.export import time_of
from condiff.interop.schedulers import process_of
from condiff.process import Level, Prediction
from condiff.process.algebra import match

NAMES = ("pred_cond", "pred_uncond")  # with the conditions, and without


class TwoAnswers:
    """A model that knows its two predictions for one state, and notes which of them it was asked for."""

    kinds = {"prompt": "vector"}  # noqa: RUF012 - a denoiser's attribute
    shape = None

    def __init__(self, process: Any, target: str, said: dict[str, Tensor]) -> None:
        self.process, self.target, self.said = process, target, said
        self.asked: set[str] = set()

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Prediction:
        keep = cond["prompt"].kept()
        names = [name for name, needed in zip(NAMES, (bool(keep.any()), not bool(keep.all())), strict=True) if needed]
        self.asked |= set(names)
        copies = len(x_t) // len(next(iter(self.said.values())))
        parts = [torch.cat([self.said[name]] * copies) for name in names]
        out = parts[0] if len(parts) == 1 else torch.where(match(keep, parts[0]).bool(), *parts)
        return Prediction(x_t, self.process.at(t), {self.target: out})


class Guider(BaseGuidance):
    """Guidance as a guider; made by :func:`condiff.interop.as_guider`.

    Args:
        guidance: the wrapper, as a function of the model.
        scheduler: of the pipeline.
    """

    _input_predictions = list(NAMES)  # noqa: RUF012 - diffusers' own attribute

    def __init__(self, guidance: Callable[[Denoises], Denoises], scheduler: Any) -> None:
        super().__init__()
        self.guidance, self.scheduler = guidance, scheduler
        self.process, self.target = process_of(scheduler)
        self.register_to_config(start=0.0, stop=1.0, enabled=True)

    def new(self, **kwargs: Any) -> Guider:
        """Another guider of the same guidance."""
        return Guider(self.guidance, self.scheduler)

    def level(self) -> Level:
        """Where the pipeline is."""
        return self.process.at(float(time_of(self.scheduler, torch.as_tensor(self._timestep).flatten()[0].cpu())))

    def needed(self) -> list[str]:
        """The evaluations of this step, the conditional one first."""
        if not self._enabled:
            return [NAMES[0]]
        if self._timestep is None:
            return list(NAMES)
        zeros = torch.zeros(1, 1)
        asked = self._ask({name: zeros for name in NAMES})[1]
        return [name for name in NAMES if name in asked]

    def _ask(self, said: dict[str, Tensor]) -> tuple[Tensor, set[str]]:
        like = next(iter(said.values()))
        model = TwoAnswers(self.process, self.target, said)
        unknown = torch.full_like(like, math.nan)  # the state, which guidance of this kind doesn't look at
        told = Conditions({"prompt": Condition(torch.zeros(len(like), 1, device=like.device), "vector")})
        out = self.guidance(model)(unknown, self.level(), told).to(self.target)  # type: ignore[arg-type]
        if not torch.isfinite(out).all() and all(bool(torch.isfinite(v).all()) for v in said.values()):
            raise Incompatible("this guidance needs the state, which guiders of diffusers don't see")
        return out, model.asked

    @property
    def is_conditional(self) -> bool:
        return self.needed()[self._count_prepared - 1] == NAMES[0]

    @property
    def num_conditions(self) -> int:
        return len(self.needed())

    def prepare_inputs(self, data: Any) -> list[Any]:
        """A batch of the network's inputs for each evaluation."""
        return [self._prepare_batch(data, NAMES.index(name), name) for name in self.needed()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """As :meth:`prepare_inputs`, from a block's state."""
        return [
            self._prepare_batch_from_block_state(input_fields, data, NAMES.index(name), name) for name in self.needed()
        ]

    def forward(self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided output of the network."""
        said = {name: v for name, v in zip(NAMES, (pred_cond, pred_uncond), strict=True) if v is not None}
        out = pred_cond if not self._enabled else self._ask(said)[0]
        return GuiderOutput(pred=out, pred_cond=pred_cond, pred_uncond=pred_uncond)
