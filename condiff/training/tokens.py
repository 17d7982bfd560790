"""TokenDenoising: the four equivalent objectives of absorbing diffusion (Ou 2025, arXiv 2406.03736, section 3).

With ``c_i`` the predicted probability of the true token at the masked position i, ``m`` the masked share and
``r = (1 - m) / m`` the ratio that turns conditionals into concrete scores::

    lambda-dce   int_0^1 (1 / m) E sum_masked -log c_i dm                 any share of masks
    k-dce        E_k (L / k) E sum_masked -log c_i                        an exact count k of masks, 1 ... L
    dse          int (m' / m) E sum_masked -log c_i dt                    denoising score entropy of s = r c (Lou 2024)
    t-dce        int (m' / m) E sum_masked -log(r c_i) dt                 the same gradient, offset by -log r

The first three are one number, the mean over all orders of the autoregressive negative log-likelihood, which bounds
``-log p(x0)`` from above; the last is not, and no perplexity may be made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.categorical import TokenProcess
from condiff.process.token_prediction import TokenPrediction
from condiff.random import Source, as_source
from condiff.training.batch import Batch, as_batch
from condiff.training.objective import Losses
from condiff.training.times import Stratified, UniformTimes

LOSSES = ("lambda-dce", "k-dce", "t-dce", "dse")


@dataclass(frozen=True, kw_only=True)
class TokenDenoising:
    """Cross-entropy of the masked tokens, weighted; nats per token.

    Args:
        loss: ``"lambda-dce"``, ``"k-dce"``, ``"t-dce"`` or ``"dse"``.
        low: the first time of the integrals over t, ``[low, 1]``, as the released models were trained; what is left out
            below it is the same share of the bound.
        stratified: one share, count or time in each of B equal parts, row by row, with far less variance.
        transform: what happens to the conditions, as in :class:`Denoising`.

    The loss of a row is the integrand at one draw, over the sequence length.
    """

    loss: str = "lambda-dce"
    low: float = 1e-3
    stratified: bool = True
    transform: Any = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if not 0.0 <= self.low < 1.0:
            raise BadValue(f"low must lie in [0, 1), got {self.low}")

    @property
    def bounds_likelihood(self) -> bool:
        """Whether its expectation bounds ``-log p`` (per token): not that of t-dce."""
        return self.loss != "t-dce"

    def __call__(
        self, denoiser: Any, batch: Batch | Mapping[str, Any], rng: int | Source | None = None, training: bool = True
    ) -> Losses:
        """The loss of a batch of ids (B, L), at masks drawn from ``rng``.

        Raises:
            BadType, BadValue: tokens that aren't ids below V, a mask of elements.
            Incompatible: a process that does more than mask.
        """
        batch, rng, process = as_batch(batch, getattr(denoiser, "kinds", None)), as_source(rng), denoiser.process
        x = _ids(batch.x, process)
        if batch.mask is not None:
            raise BadValue("every token counts here: cut sequences to one length instead of masking their ends")
        u = self._uniform(x, rng)
        truth, weight = self.corrupt(process, x, u, rng)
        cond = batch.cond
        if self.transform is not None:
            cond = self.transform(cond, t=truth.level.t, rng=rng, training=training)
        said = denoiser(truth.x_t, truth.level, cond)
        per_sample = self.value(said, truth, weight) / x.shape[1]
        weighted = per_sample if batch.weight is None else per_sample * batch.weight.to(per_sample)
        return Losses(weighted.mean(), per_sample, {}, torch.as_tensor(truth.level.t))

    def _uniform(self, x: Tensor, rng: Source) -> Tensor:
        times = Stratified() if self.stratified else UniformTimes()
        return times.uniform(x.shape, rng, x.device if x.device.type == "cuda" else "cpu").to(x.device)

    def corrupt(self, process: TokenProcess, x: Tensor, u: Tensor, rng: Source) -> tuple[TokenPrediction, Tensor]:
        """Masked tokens with their truth, and the weight of each row's cross-entropy, at uniform numbers u (B,)."""
        if self.loss == "lambda-dce":
            share = 1.0 - u  # in (0, 1]: no row has nothing to do for certain
            return process.mask_share(x, share, rng), 1.0 / share
        if self.loss == "k-dce":
            k = (u * x.shape[1]).long().clamp(max=x.shape[1] - 1) + 1
            return process.mask_count(x, k, rng), x.shape[1] / k.double()
        truth = process.forward(x, self.low + (1.0 - self.low) * u, rng=rng)
        rate = torch.as_tensor(truth.level.reveal_rate, device=x.device)
        return truth, (1.0 - self.low) * torch.where(torch.as_tensor(truth.level.mask) > 0.0, rate, 0.0)

    def value(self, said: TokenPrediction, truth: TokenPrediction, weight: Tensor) -> Tensor:
        """The weighted sum over masked positions of each row, (B,) in float32 (float64 for float64 predictions)."""
        hidden = truth.masked
        log_c = said.log_probs.gather(-1, truth.tokens[..., None])[..., 0]
        terms = -log_c
        if self.loss == "t-dce":
            level = truth.level
            log_r = torch.log(torch.as_tensor(level.visible)) - torch.log(torch.as_tensor(level.mask))
            terms = terms - truth.process.spread(log_r, truth.x_t).to(terms)
        return weight.to(terms) * torch.where(hidden, terms, 0.0).sum(-1)


def _ids(x: Any, process: Any) -> Tensor:
    if not isinstance(process, TokenProcess) or not process.visible_is_clean:
        raise Incompatible(f"TokenDenoising trains absorbing diffusion, such as Absorbing(vocab), not {process}")
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise BadType(f"TokenDenoising takes ids (B, L), got {getattr(x, 'shape', type(x).__name__)}")
    process.check_tokens(x)
    return x
