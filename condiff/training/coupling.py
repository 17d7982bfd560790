"""Couplings: which endpoint, or which noise, goes with which sample of a batch.

Any coupling of samples x0 with endpoints y keeps both laws, and gives an interpolant between them (Albergo 2023;
Tong 2023). Coupling x0 with the *noise* of a path without endpoint keeps the marginals of the velocity too, but then
``-E[z | x_t] / noise(t)`` is no score any more: such models are sampled along the ODE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from condiff.errors import require_extra
from condiff.fields import checked
from condiff.random import Source
from condiff.typing import Float, Int, Tensor


class Coupling(ABC):
    """Base: ``coupling(x, other, rng)`` gives, for each row of x, the row of ``other`` that goes with it."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        checked(cls)

    @abstractmethod
    def __call__(self, x: Float[Tensor, "batch *shape"], other: Float[Tensor, "batch *shape"], rng: Source) -> Tensor:
        """A permutation (B,) of the rows of ``other``."""


@dataclass(frozen=True)
class Independent(Coupling):
    """A random permutation: pairs are torn apart."""

    def __call__(self, x: Tensor, other: Tensor, rng: Source) -> Int[Tensor, " batch"]:
        return rng.uniform((len(x),)).argsort().to(x.device)


@dataclass(frozen=True)
class OptimalTransport(Coupling):
    """The permutation with the least ``sum |x_i - other_j|^2`` (Pooladian 2023; Tong 2023): straighter paths.

    Exact for the batch (SciPy's assignment, of cubic cost: a few milliseconds for 256 rows), and only for it: it tends
    to the optimal transport of the laws as batches grow. Rows are matched among those that one process sees at once.

    Raises:
        MissingExtra: without SciPy.
    """

    def __call__(self, x: Tensor, other: Tensor, rng: Source) -> Int[Tensor, " batch"]:
        solve = require_extra("scipy.optimize", "metrics").linear_sum_assignment
        a, b = x.flatten(1).double(), other.flatten(1).double()
        cost = -2.0 * a @ b.T  # the squares of a and b cost every permutation the same
        _, columns = solve(cost.detach().cpu().numpy())
        return torch.from_numpy(columns).long().to(x.device)
