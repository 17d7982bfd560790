"""Distances between two samples that need no fitted model: kernels, energy, slices.

``mmd2`` and ``energy_distance`` are unbiased by default, so that for equal distributions they scatter about zero
and may be negative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.metrics.checks import blocks, distances, sum_of_distances, two_sets
from condiff.random import as_source
from condiff.typing import Float


class Kernel(ABC):
    """Base: a positive definite ``k(x, y)`` of float64 rows."""

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, D), (M, D) -> (N, M)."""


@dataclass(frozen=True, kw_only=True)
class Polynomial(Kernel):
    """``(x.y / D + offset)^degree``, the kernel of KID (Binkowski 2018)."""

    degree: int = 3
    offset: float = 1.0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + self.offset) ** self.degree


@dataclass(frozen=True, kw_only=True)
class RBF(Kernel):
    """``exp(-|x - y|^2 / (2 bandwidth^2))``."""

    bandwidth: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0.0:
            raise BadValue(f"bandwidth must be positive, got {self.bandwidth}")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distances(a, b) / self.bandwidth).square())


def _mean_kernel(kernel: Kernel, a: Tensor, b: Tensor, off_diagonal: bool = False) -> float:
    total = sum(float(kernel(rows, b).sum()) for _, rows in blocks(a, len(b)))
    if not off_diagonal:
        return total / (len(a) * len(b))
    own = sum(float(kernel(row[None], row[None])) for row in a)
    return (total - own) / (len(a) * (len(a) - 1))


def mmd2(a: Float[Tensor, "n *shape"], b: Float[Tensor, "m *shape"], kernel: Kernel, unbiased: bool = True) -> float:
    """Squared maximum mean discrepancy ``E k(x, x') + E k(y, y') - 2 E k(x, y)`` (Gretton 2012, eq. 3 and 5).

    Args:
        unbiased: leave out pairs of a row with itself.
    """
    rows_a, rows_b = two_sets(a, b, least=2 if unbiased else 1)
    within = _mean_kernel(kernel, rows_a, rows_a, unbiased) + _mean_kernel(kernel, rows_b, rows_b, unbiased)
    return within - 2.0 * _mean_kernel(kernel, rows_a, rows_b)


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """KID: the unbiased squared MMD of features under the cubic kernel, over all pairs (no random subsets)."""
    return mmd2(features_a, features_b, Polynomial())


def energy_distance(a: Float[Tensor, "n *shape"], b: Float[Tensor, "m *shape"], unbiased: bool = True) -> float:
    """``2 E|x - y| - E|x - x'| - E|y - y'|`` with Euclidean norms (Székely & Rizzo 2013)."""
    rows_a, rows_b = two_sets(a, b, least=2 if unbiased else 1)

    def within(rows: Tensor) -> float:
        n = len(rows)
        return sum_of_distances(rows, rows, skip_self=True) / (n * (n - 1) if unbiased else n * n)

    between = sum_of_distances(rows_a, rows_b) / (len(rows_a) * len(rows_b))
    return 2.0 * between - within(rows_a) - within(rows_b)


def wasserstein_1d(a: Float[Tensor, "n *columns"], b: Float[Tensor, "m *columns"], p: float = 2.0) -> Tensor:
    """Exact ``W_p^p`` between the empirical distributions of each column: ``integral |Q_a(u) - Q_b(u)|^p du``.

    Sample sizes may differ: the quantile functions are constant between the merged levels i/n and j/m.
    """
    rows_a, rows_b = two_sets(a, b)
    if not p >= 1.0:
        raise BadValue(f"Wasserstein distances need p >= 1, got {p}")
    n, m = len(rows_a), len(rows_b)
    rows_a, rows_b = rows_a.sort(dim=0).values, rows_b.sort(dim=0).values
    # Levels in units of 1 / (n m), so that they are exact integers.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(ends, prepend=ends.new_zeros(1)).double() / (n * m)
    i, j = ((ends - 1) // m).to(a.device), ((ends - 1) // n).to(a.device)
    return ((rows_a[i] - rows_b[j]).abs() ** p * widths.to(a.device)[:, None]).sum(dim=0)


def sliced_wasserstein(
    a: Float[Tensor, "n *shape"],
    b: Float[Tensor, "m *shape"],
    *,
    projections: int = 256,
    p: float = 2.0,
    rng: Any = 0,
) -> float:
    """``(mean over directions of W_p^p of the projections)^(1/p)`` (Bonneel 2015), with random unit directions.

    Args:
        rng: of the directions; the default is one fixed set, so that numbers compare.
    """
    rows_a, rows_b = two_sets(a, b)
    if projections < 1:
        raise BadValue(f"projections must be at least 1, got {projections}")
    directions = as_source(rng).normal((projections, rows_a.shape[1]), torch.float64, rows_a.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return float(wasserstein_1d(rows_a @ directions.T, rows_b @ directions.T, p).mean() ** (1.0 / p))
