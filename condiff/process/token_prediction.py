"""TokenPrediction: what is said about the clean tokens behind a state ``x_t``; the categorical Prediction.

States are ids (B, ...) in {0, ..., V}, MASK = V, or soft one-hots (B, ..., V + 1). What is predicted is
``log p(x0 = v | x_t)`` over the V data tokens: MASK is never predicted. Where the process leaves visible tokens
clean (absorbing), they are carried over: their prediction is the token itself ("SUBS", Sahoo 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, unknown
from condiff.process.algebra import Weight, scale

KINDS = ("log_probs", "probs", "tokens")


def soft(x: Tensor) -> bool:
    """Whether a state is a (soft) one-hot rather than ids."""
    return x.dtype.is_floating_point


def ids(x: Tensor) -> Tensor:
    """The most probable id of a state, MASK included."""
    return x.argmax(-1) if soft(x) else x


def one_hot_log(tokens: Tensor, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """log of the one-hot of data tokens: 0 at the token, -inf elsewhere, (..., V)."""
    index = torch.arange(vocab, device=tokens.device)
    out = torch.zeros((), dtype=dtype, device=tokens.device)
    return torch.where(tokens[..., None] == index, out, -torch.inf)


class TokenPrediction:
    """The law of each clean token given ``x_t``, independent of each other.

    Args:
        x_t: the state, ids or soft one-hots.
        level: its :class:`~condiff.process.categorical.TokenLevel`.
        log_probs: (B, ..., V) unnormalised log-probabilities (logits); normalised here, in float32 at least.
        tokens: instead, the clean tokens themselves (B, ...), known for sure.
        aux: side outputs.

    Raises:
        BadValue: another shape.
    """

    __slots__ = ("_log_probs", "_tokens", "aux", "level", "x_t")

    def __init__(
        self,
        x_t: Tensor,
        level: Any,
        log_probs: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        aux: dict[str, Any] | None = None,
    ) -> None:
        if (log_probs is None) == (tokens is None):
            raise BadValue("give log_probs or tokens")
        self.x_t, self.level, self.aux = x_t, level, {} if aux is None else aux
        self._tokens = tokens
        self._log_probs = None if log_probs is None else self._normalise(log_probs)

    @classmethod
    def normalised(cls, x_t: Tensor, level: Any, log_probs: Tensor) -> TokenPrediction:
        """Of log-probabilities that are normalised, with what is visible carried over: as they are, bit for bit."""
        out = cls(x_t, level, tokens=ids(x_t))
        out._tokens, out._log_probs = None, log_probs
        return out

    @property
    def process(self) -> Any:
        return self.level.process

    def _normalise(self, logits: Tensor) -> Tensor:
        now, vocab = ids(self.x_t), self.process.vocab
        if logits.shape != (*now.shape, vocab):
            hint = ": leave MASK out" if logits.shape == (*now.shape, vocab + 1) else ""
            raise BadValue(f"log-probabilities must be {(*now.shape, vocab)}, got {tuple(logits.shape)}{hint}")
        if not logits.dtype.is_floating_point:
            raise BadType(f"log-probabilities must be floats, got {logits.dtype}")
        out = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        if not self.process.visible_is_clean:
            return out
        return torch.where((now != self.process.mask_id)[..., None], one_hot_log(now, vocab, out.dtype), out)

    @property
    def log_probs(self) -> Tensor:
        """``log p(x0 | x_t)``, (B, ..., V); -inf where impossible."""
        if self._log_probs is None:
            assert self._tokens is not None
            self._log_probs = one_hot_log(self._tokens, self.process.vocab)
        return self._log_probs

    @property
    def probs(self) -> Tensor:
        """``p(x0 | x_t)``, (B, ..., V)."""
        return self.log_probs.exp()

    @property
    def tokens(self) -> Tensor:
        """The most probable clean tokens, (B, ...)."""
        return self.log_probs.argmax(-1) if self._tokens is None else self._tokens

    @property
    def masked(self) -> Tensor:
        """Where the state is MASK, (B, ...) booleans."""
        return ids(self.x_t) == self.process.mask_id

    @property
    def entropy(self) -> Tensor:
        """Entropy of each token's law in nats, (B, ...)."""
        return torch.special.entr(self.probs).sum(-1)

    def set(self, kind: str, value: Tensor, **aux: Any) -> TokenPrediction:
        """A prediction of the same state that says ``value`` for ``log_probs``, ``probs`` or ``tokens``.

        Visible tokens of an absorbing process are carried over again.

        Raises:
            BadValue: an unknown kind, another shape.
        """
        aux = {**self.aux, **aux}
        if kind == "tokens":
            return TokenPrediction(self.x_t, self.level, one_hot_log(value, self.process.vocab), aux=aux)
        if kind not in KINDS:
            raise unknown("token prediction", kind, KINDS)
        return TokenPrediction(self.x_t, self.level, value if kind == "log_probs" else value.log(), aux=aux)

    def __repr__(self) -> str:
        return f"TokenPrediction(x_t {tuple(self.x_t.shape)}, t={self.level.t}, {self.process})"


def mix_tokens(predictions: list[TokenPrediction], weights: list[Weight]) -> TokenPrediction:
    """``p proportional to prod_i p_i^weight_i``, token by token: guidance of tokens (scale s: weights 1 - s, s).

    Weights are numbers, or tensors over the leading dimensions. A token that a prediction of non-zero weight calls
    impossible stays impossible.
    """
    first = predictions[0]
    total = torch.zeros_like(first.log_probs)
    possible = torch.ones_like(first.log_probs, dtype=torch.bool)
    for weight, prediction in zip(weights, predictions, strict=True):
        if not isinstance(weight, Tensor) and weight == 0.0:
            continue
        log_p = prediction.log_probs
        finite = log_p > -torch.inf
        possible = possible & finite
        total = total + scale(weight, torch.where(finite, log_p, 0.0))
    return first.set("log_probs", torch.where(possible, total, -torch.inf), parts=predictions)
