"""Enumerated token laws: a probability for each of the V^L sequences, and the exact clean-token posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate
from condiff.process.categorical import TokenProcess
from condiff.process.oracles.labels import label_weights, pick, read_label
from condiff.process.token_level import TokenTime
from condiff.process.token_prediction import TokenPrediction
from condiff.random import as_source

Cond = Mapping[str, Any] | None
LIMIT = 2**20


@dataclass(frozen=True, eq=False, repr=False)
class TokenTable:
    """The denoiser of an enumerated law. Made by :func:`tokens`.

    ``rows`` (N, L) are the sequences, ``log_weights`` (N,) their log-probabilities; with classes each sequence
    appears once per class, and ``cond={"label": y}`` restricts to those of class y.
    """

    process: TokenProcess
    rows: Tensor
    log_weights: Tensor
    labels: Tensor | None = None
    time_free: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows.shape[1],)

    @property
    def kinds(self) -> dict[str, str]:
        return {} if self.labels is None else {"label": "label"}

    def __call__(self, x_t: Tensor, t: TokenTime, cond: Cond = None) -> TokenPrediction:
        """``p(x0^i = v | x_t)``, exact."""
        r = self.posterior(x_t, t, cond)
        marginals = torch.stack([r @ (self.rows.to(r.device) == v).double() for v in range(self.process.vocab)], -1)
        return TokenPrediction(x_t, self.process.at(t), marginals.log())

    def posterior(self, x_t: Tensor, t: TokenTime, cond: Cond = None) -> Tensor:
        """``p(sequence | x_t)`` jointly, (B, N) float64.

        On an absorbing process it depends on the visible tokens only, so any t will do.

        Raises:
            Degenerate: a state that this law can't produce.
        """
        return self._log_joint(x_t, t, cond, self.process.visible_is_clean).softmax(-1)

    def log_prob(self, x_t: Tensor, t: TokenTime, cond: Cond = None) -> Tensor:
        """``log p_t(x_t | label)`` in nats, (B,) float64."""
        return self._log_joint(x_t, t, cond, False).logsumexp(-1)

    def class_log_prob(self, x_t: Tensor, t: TokenTime) -> Tensor:
        """``log p(label | x_t)``, (B, classes) float64."""
        if self.labels is None:
            raise BadValue("this law has no classes: give probs with a leading dimension of classes and classes=")
        r = self.posterior(x_t, t)
        return torch.stack([r[:, self.labels == y].sum(-1) for y in range(int(self.labels.max()) + 1)], -1).log()

    def given(self, tokens: Tensor, known: Tensor) -> TokenTable:
        """The law of the sequences that agree with ``tokens`` (L,) where ``known`` (L,) is true.

        Raises:
            Degenerate: when there is none.
        """
        agrees = ((self.rows == tokens) | ~known).all(-1)
        log_w = torch.where(agrees, self.log_weights, -torch.inf)
        if not bool(torch.isfinite(log_w).any()):
            raise Degenerate(f"no sequence of positive probability has the known tokens {tokens[known].tolist()}")
        return replace(self, log_weights=log_w.log_softmax(0))

    def sample(self, n: int, rng: Any = None, cond: Cond = None) -> Tensor:
        """n sequences, (n, L) ids."""
        return self.rows[
            pick(label_weights(self.log_weights, self.labels, read_label(cond)), as_source(rng).uniform((n,)))
        ]

    def index(self, x: Tensor) -> Tensor:
        """The row numbers of clean sequences (n, L), as if without classes: for counting."""
        powers = self.process.vocab ** torch.arange(self.rows.shape[1] - 1, -1, -1, device=x.device)
        return (x * powers).sum(-1)

    def _log_joint(self, x_t: Tensor, t: TokenTime, cond: Cond, visible_only: bool) -> Tensor:
        if x_t.shape[1:] != self.shape or x_t.dtype.is_floating_point:
            raise BadValue(f"a state must be ids (batch, {self.shape[0]}), got {x_t.dtype} {tuple(x_t.shape)}")
        device, rows = x_t.device, self.rows.to(x_t.device)
        if visible_only:
            agrees = ((x_t[:, None] == rows) | (x_t[:, None] == self.process.mask_id)).all(-1)
            log_like = torch.where(agrees, 0.0, -torch.inf).double()
        else:
            table = self.process.log_likelihood(x_t, t)  # (B, L, V)
            log_like = table[:, torch.arange(rows.shape[1], device=device), rows].sum(-1)
        labels = None if self.labels is None else self.labels.to(device)
        out = label_weights(self.log_weights.to(device), labels, read_label(cond, device)) + log_like
        lost = torch.isneginf(out.amax(-1))
        if bool(lost.any()):
            raise Degenerate(f"the state {x_t[lost][0].tolist()} has probability 0 at t = {self.process.at(t).t}")
        return out

    def __repr__(self) -> str:
        return f"TokenTable({self.process.vocab}^{self.shape[0]} sequences, process={self.process})"


def tokens(process: TokenProcess, probs: Any, classes: Any = None) -> TokenTable:
    """The oracle of an enumerated law of token sequences.

    Args:
        process: a categorical process.
        probs: (V, ..., V), L dimensions: the probability of each sequence, normalised here; or
            (classes, V, ..., V): a law per class, each normalised.
        classes: (classes,) probabilities of the classes, when ``probs`` has them.

    Raises:
        BadValue: sizes other than the vocabulary, negative probabilities, more than 2^20 sequences.
    """
    probs = torch.as_tensor(probs, dtype=torch.float64)
    law = probs if classes is None else probs[0]
    if law.ndim < 1 or any(size != process.vocab for size in law.shape) or probs.numel() > LIMIT:
        raise BadValue(
            f"probs must be ({process.vocab}, ..., {process.vocab}), up to {LIMIT} entries, got {tuple(probs.shape)}"
        )
    if not bool((probs >= 0.0).all()):
        raise BadValue("probs must be >= 0")
    rows = torch.cartesian_prod(*[torch.arange(process.vocab)] * law.ndim).reshape(-1, law.ndim)
    if classes is None:
        return TokenTable(process, rows, (probs.flatten() / probs.sum()).log(), time_free=process.visible_is_clean)
    weights = torch.as_tensor(classes, dtype=torch.float64)
    if weights.shape != probs.shape[:1] or not bool((weights >= 0.0).all()):
        raise BadValue(f"classes must be {probs.shape[0]} probabilities, got {tuple(weights.shape)}")
    flat = probs.flatten(1)
    joint = (weights / weights.sum())[:, None] * flat / flat.sum(-1, keepdim=True)
    labels = torch.arange(len(weights)).repeat_interleave(len(rows))
    return TokenTable(process, rows.repeat(len(weights), 1), joint.flatten().log(), labels, process.visible_is_clean)
