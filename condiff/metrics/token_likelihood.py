"""Any-order bound on the likelihood of token sequences under absorbing diffusion (Ou 2025, arXiv 2406.03736).

With ``c_i(x^U)`` the predicted probability of the true token at i given the visible ones U, three averages are one
number, and bound ``-log p(x)`` from above::

    "share"   int_0^1 (1 / m) E sum_masked -log c_i dm           every token masked with probability m
    "count"   E_k (L / k) E sum_masked -log c_i                  k tokens masked, k uniform on 1 ... L
    "order"   E_pi sum_l -log c(x^{pi(l)} | x^{pi(<l)})          one token after the other, in a random order

With exact conditionals each order gives ``-log p(x)`` exactly; their spread shows how far a model's conditionals
disagree with each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.conditions import Conditions, as_conditions
from condiff.errors import BadType, BadValue, Incompatible, unknown
from condiff.process.categorical import TokenProcess
from condiff.process.token_prediction import TokenPrediction
from condiff.random import Source, as_source
from condiff.typing import Float, Int

LAWS = ("share", "count", "order")


class OrderBound(NamedTuple):
    """A bound, (B,) each.

    total: mean over draws, in nats: an estimate of a lower bound on ``log p(x)``.
    error: its standard error, as if draws were independent (stratified ones do better).
    calls: network calls of a sequence.
    """

    total: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    calls: int

    kind = "lower bound"


@torch.no_grad()
def order_bound(
    denoiser: Any,
    x: Int[Tensor, "batch length"],
    draws: int = 128,
    *,
    law: str = "count",
    rng: Any = None,
    cond: Any = None,
    rows: int = 256,
) -> OrderBound:
    """The bound on ``log p`` of each sequence, in nats, summed in float64.

    Args:
        denoiser: of tokens, on an absorbing process.
        x: clean ids.
        draws: masks of each sequence, stratified over the share or the count; with ``"order"``, orders (of L calls).
        law: which average. ``"share"`` is the training objective's; ``"count"`` has a bounded weight, so that it needs
            fewer draws; ``"order"`` is exact for one order each.
        rng: of the draws.
        cond: conditions.
        rows: sequences a network call.

    Raises:
        BadType, BadValue: ids that aren't below V, an unknown law, draws or rows below 1.
        Incompatible: a process that does more than mask.
    """
    process = denoiser.process
    if not isinstance(process, TokenProcess) or not process.visible_is_clean:
        raise Incompatible(
            f"the any-order bound belongs to absorbing diffusion, such as Absorbing(vocab), not {process}"
        )
    if law not in LAWS:
        raise unknown("law of the masks", law, LAWS)
    if draws < 1 or rows < 1:
        raise BadValue(f"draws and rows must be at least 1, got {draws} and {rows}")
    if x.ndim != 2 or len(x) == 0:
        raise BadType(f"sequences are ids (B, L), got {tuple(x.shape)}")
    process.check_tokens(x)
    cond, source = as_conditions(cond, getattr(denoiser, "kinds", None), x.device), as_source(rng)
    one = _order if law == "order" else _masks
    values = torch.stack([one(denoiser, x, cond, law, j, draws, source, rows) for j in range(draws)])
    error = values.std(0) / draws**0.5 if draws > 1 else torch.full_like(values[0], torch.nan)
    return OrderBound(-values.mean(0), error, draws * (x.shape[1] if law == "order" else 1))


def _masks(
    denoiser: Any, x: Tensor, cond: Conditions, law: str, draw: int, draws: int, rng: Source, rows: int
) -> Tensor:
    """The integrand at one mask of each sequence, the j-th part of the shares or counts; (B,) float64."""
    length = x.shape[1]
    u = (draw + rng.uniform((len(x),), torch.float64, x.device)) / draws
    if law == "share":
        share = 1.0 - u
        truth, weight = denoiser.process.mask_share(x, share, rng), 1.0 / share
    else:
        k = (u * length).long().clamp(max=length - 1) + 1
        truth, weight = denoiser.process.mask_count(x, k, rng), length / k.double()
    return weight * _missed(denoiser, truth, x, truth.masked, cond, rows)


def _order(
    denoiser: Any, x: Tensor, cond: Conditions, law: str, draw: int, draws: int, rng: Source, rows: int
) -> Tensor:
    """``sum_l -log c(x^{pi(l)} | x^{pi(<l)})`` in a random order of each sequence, (B,) float64."""
    place = rng.uniform(x.shape, device=x.device).argsort(-1).argsort(-1)  # of each position in the order
    total, process = torch.zeros(len(x), dtype=torch.float64, device=x.device), denoiser.process
    for step in range(x.shape[1]):
        state = torch.where(place < step, x, process.mask_id)
        level = process.at(float(process.masking.time(torch.tensor(1.0 - step / x.shape[1]))))
        said = TokenPrediction(state, level, tokens=x)
        total += _missed(denoiser, said, x, place == step, cond, rows)
    return total


def _missed(denoiser: Any, truth: TokenPrediction, x: Tensor, where: Tensor, cond: Conditions, rows: int) -> Tensor:
    """``sum -log c_i`` over the chosen positions, (B,) float64."""
    out = []
    for part in torch.arange(len(x), device=x.device).split(rows):
        said = denoiser(truth.x_t[part], truth.level.rows(part), cond.rows(part))
        log_c = said.log_probs.gather(-1, x[part][..., None])[..., 0]
        out.append(torch.where(where[part], -log_c.double(), 0.0).sum(-1))
    return torch.cat(out)
