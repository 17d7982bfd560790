"""Markov chains of tokens: long sequences whose clean-token posterior is exact, by the forward-backward recursion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate
from condiff.process.categorical import TokenProcess
from condiff.process.token_level import TokenTime
from condiff.process.token_prediction import TokenPrediction
from condiff.random import as_source


@dataclass(frozen=True, eq=False, repr=False)
class TokenChain:
    """The denoiser of ``p(x) = initial(x^1) prod_i transition(x^{i+1} | x^i)``. Made by :func:`markov`."""

    process: TokenProcess
    log_initial: Tensor
    log_transition: Tensor
    length: int
    time_free: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def kinds(self) -> dict[str, str]:
        return {}

    def __call__(self, x_t: Tensor, t: TokenTime, cond: Mapping[str, Any] | None = None) -> TokenPrediction:
        """``p(x0^i = v | x_t)``, exact, for ids x_t (B, L)."""
        evidence = self._evidence(x_t, t)
        forward, backward = self._forward(evidence), torch.zeros_like(evidence)
        for i in range(x_t.shape[1] - 2, -1, -1):
            later = (evidence[:, i + 1] + backward[:, i + 1])[:, None]
            backward[:, i] = (self.log_transition.to(x_t.device) + later).logsumexp(-1)
        return TokenPrediction(x_t, self.process.at(t), forward + backward)

    def log_prob(self, x: Tensor) -> Tensor:
        """``log p(x)`` in nats of clean sequences (B, L), (B,) float64."""
        self.process.check_tokens(x)
        steps = self.log_transition.to(x.device)[x[:, :-1], x[:, 1:]]
        return self.log_initial.to(x.device)[x[:, 0]] + steps.sum(-1)

    @property
    def entropy(self) -> float:
        """Entropy of a sequence in nats: what no model's mean negative log-likelihood falls below."""
        p, kernel = self.log_initial.exp(), self.log_transition.exp()
        rows = torch.special.entr(kernel).sum(-1)
        total = torch.special.entr(p).sum()
        for _ in range(self.length - 1):
            total, p = total + p @ rows, p @ kernel
        return float(total)

    def sample(self, n: int, rng: Any = None) -> Tensor:
        """n sequences, (n, L) ids."""
        u = as_source(rng).uniform((n, self.length))
        start, rows = self.log_initial.exp().cumsum(-1), self.log_transition.exp().cumsum(-1)
        x = torch.zeros(n, self.length, dtype=torch.long)
        for i in range(self.length):
            cdf = start.expand(n, -1) if i == 0 else rows[x[:, i - 1]]
            x[:, i] = torch.searchsorted((cdf / cdf[:, -1:]).contiguous(), u[:, i, None].contiguous(), right=True)[:, 0]
        return x

    def _evidence(self, x_t: Tensor, t: TokenTime) -> Tensor:
        """``log q(x_t^i | x0^i = v)`` up to a constant, (B, L, V); the time doesn't matter where tokens only mask."""
        if x_t.shape[1:] != self.shape or x_t.dtype.is_floating_point:
            raise BadValue(f"a state must be ids (batch, {self.length}), got {x_t.dtype} {tuple(x_t.shape)}")
        if not self.process.visible_is_clean:
            return self.process.log_likelihood(x_t, t)
        same = x_t[..., None] == torch.arange(self.process.vocab, device=x_t.device)
        fits = same | (x_t == self.process.mask_id)[..., None]
        return torch.where(fits, 0.0, -torch.inf).double()

    def _forward(self, evidence: Tensor) -> Tensor:
        """``log p(x0^i = v, x_t^1 ... x_t^i)``, (B, L, V)."""
        out = [self.log_initial.to(evidence.device) + evidence[:, 0]]
        for i in range(1, evidence.shape[1]):
            reached = (out[-1][:, :, None] + self.log_transition.to(evidence.device)).logsumexp(1)
            out.append(reached + evidence[:, i])
        if bool(torch.isneginf(out[-1].amax(-1)).any()):
            raise Degenerate("a state has probability 0 under this chain")
        return torch.stack(out, 1)

    def __repr__(self) -> str:
        return f"TokenChain({self.process.vocab} tokens, length {self.length}, process={self.process})"


def markov(process: TokenProcess, transition: Any, length: int, initial: Any = None) -> TokenChain:
    """The oracle of a Markov chain.

    Args:
        process: a categorical process.
        transition: (V, V), row v the law of what follows v; rows are normalised here.
        length: of a sequence.
        initial: (V,), the law of the first token; the chain's stationary law when None.

    Raises:
        BadValue: sizes other than the vocabulary, negative probabilities, a row without any.
    """
    kernel = torch.as_tensor(transition, dtype=torch.float64)
    if kernel.shape != (process.vocab, process.vocab) or not bool((kernel >= 0.0).all() and (kernel.sum(-1) > 0).all()):
        raise BadValue(f"transition must be {(process.vocab,) * 2} of numbers >= 0, got {tuple(kernel.shape)}")
    if length < 1:
        raise BadValue(f"length must be at least 1, got {length}")
    kernel = kernel / kernel.sum(-1, keepdim=True)
    first = _stationary(kernel) if initial is None else torch.as_tensor(initial, dtype=torch.float64)
    if first.shape != (process.vocab,) or not bool((first >= 0.0).all() and first.sum() > 0):
        raise BadValue(f"initial must be {(process.vocab,)} numbers >= 0, not all 0, got shape {tuple(first.shape)}")
    log_first = (first / first.sum()).log()
    return TokenChain(process, log_first, kernel.log(), length, time_free=process.visible_is_clean)


def _stationary(kernel: Tensor) -> Tensor:
    """The law that the kernel leaves as it is: ``p (K - 1) = 0``, sum p = 1."""
    size = len(kernel)
    system = torch.cat([kernel.T - torch.eye(size, dtype=kernel.dtype), torch.ones(1, size, dtype=kernel.dtype)])
    target = torch.zeros(size + 1, 1, dtype=kernel.dtype)
    target[-1] = 1.0
    return torch.linalg.lstsq(system, target).solution[:, 0].clamp_min(0.0)
