"""Temperature, top-k and top-p of predicted tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.fields import checked
from condiff.process.token_prediction import TokenPrediction


@dataclass(frozen=True, kw_only=True)
@checked
class TokenFilter:
    """``prediction -> prediction`` with sharper or truncated laws, renormalised; in this order:

    Args:
        temperature: ``p^(1 / temperature)``; 0 keeps the most probable token only.
        top_k: the k most probable tokens.
        top_p: the smallest set of most probable tokens with at least this mass (Holtzman 2020), never empty.

    Raises:
        BadValue: temperature < 0, top_k < 1 or above the vocabulary, top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise BadValue(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise BadValue(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise BadValue(f"top_p must lie in (0, 1], got {self.top_p}")

    def __call__(self, prediction: TokenPrediction) -> TokenPrediction:
        if self == TokenFilter():
            return prediction
        log_p = prediction.log_probs
        if self.temperature == 0.0:
            return prediction.set("tokens", log_p.argmax(-1))
        log_p = (log_p / self.temperature).log_softmax(-1)
        top_k = self.top_k
        if top_k is not None:
            if top_k > log_p.shape[-1]:
                raise BadValue(f"top_k = {top_k} exceeds the vocabulary of {log_p.shape[-1]}")
            log_p = _keep(log_p, lambda sorted_p: torch.arange(sorted_p.shape[-1], device=sorted_p.device) < top_k)
        if self.top_p is not None:
            log_p = _keep(log_p.log_softmax(-1), lambda sorted_p: sorted_p.cumsum(-1) - sorted_p < self.top_p)
        return prediction.set("log_probs", log_p)


def _keep(log_p: Tensor, rule) -> Tensor:
    """-inf where the rule, which sees probabilities sorted from the highest, says no."""
    values, order = log_p.sort(dim=-1, descending=True, stable=True)
    kept = rule(values.double().exp()).expand(order.shape)
    return torch.where(torch.zeros_like(kept).scatter(-1, order, kept), log_p, -torch.inf)
