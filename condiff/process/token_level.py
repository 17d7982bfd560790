"""Levels and priors of categorical processes: the twins of :class:`condiff.process.Level` and ``Moments``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.process.algebra import Weight
from condiff.process.prior import Prior
from condiff.random import Source


class TokenLevel(NamedTuple):
    """A time and what is lost there; numbers for one common time, else float64 tensors of t's shape."""

    t: Weight
    mask: Weight
    lost: Weight
    visible: Weight  # 1 - mask
    retain: Weight  # 1 - lost: the probability that a visible token is the original
    d_mask: Weight
    d_lost: Weight
    process: Any  # the TokenProcess that made it

    @property
    def model_time(self) -> Weight:
        """What a network is told: t."""
        return self.t

    @property
    def reveal_rate(self) -> Weight:
        """``d_mask / mask``: the rate at which MASK turns into tokens backwards, and the weight of the exact
        likelihood bound ``E int reveal_rate sum_masked -log p(x0 | x_t) dt`` of absorbing diffusion."""
        return self.d_mask / self.mask

    def rows(self, index: Any) -> TokenLevel:
        """The level of a subset of the batch."""

        def pick(w: Weight) -> Weight:
            if not isinstance(w, Tensor) or w.ndim == 0:
                return w
            return w[index.to(w.device) if isinstance(index, Tensor) else index]

        return self._replace(**{name: pick(getattr(self, name)) for name in self._fields if name != "process"})


TokenTime = float | Tensor | TokenLevel


@dataclass(frozen=True)
class TokenPrior(Prior):
    """The law of tokens at t = 1: MASK everywhere, or uniform tokens for a process without MASK."""

    def sample(
        self,
        level: TokenLevel,
        shape: Sequence[int],
        rng: Source,
        *,
        source: Tensor | None = None,
        dtype: torch.dtype = torch.long,
        device: Any = "cpu",
    ) -> Tensor:
        """ids of the given shape (B, ...); ``dtype`` doesn't matter.

        Raises:
            BadValue: at t < 1, where the law depends on the data.
        """
        if bool((torch.as_tensor(level.t) != 1.0).any()):
            raise BadValue(
                f"the prior of {level.process} is its law at t = 1, the grid starts at {level.t}: give initial="
            )
        if level.process.masking is None:
            return rng.integers(level.process.vocab, tuple(shape), device)
        return torch.full(tuple(shape), level.process.mask_id, dtype=torch.long, device=device)
