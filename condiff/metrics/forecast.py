"""Scores of probabilistic forecasts: the continuous ranked probability score.

``CRPS(F, y) = integral (F(x) - 1{x >= y})^2 dx = E|X - y| - E|X - X'| / 2``, in the units of y, 0 at best. For a
point forecast it is the absolute error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.errors import BadValue, NonFinite
from condiff.typing import Float


def crps(samples: Float[Tensor, "members *shape"], y: Float[Tensor, "*shape"], unbiased: bool = True) -> Tensor:
    """CRPS of an ensemble, elementwise over y's shape, float64.

    Args:
        samples: ensemble members, in the first dimension.
        unbiased: the fair score (Ferro 2014), which doesn't reward small ensembles; False is the score of the
            empirical distribution.

    Raises:
        BadValue: other shapes; a single member with ``unbiased``. NonFinite: NaN.
    """
    n = len(samples)
    if samples.shape[1:] != y.shape or n < (2 if unbiased else 1):
        least = 2 if unbiased else 1
        raise BadValue(f"samples {tuple(samples.shape)} must be at least {least} members of y's shape {tuple(y.shape)}")
    x, y = samples.double(), y.double()
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise NonFinite("samples or y hold NaN or infinity")
    # Sorted, sum_ij |x_i - x_j| = 2 sum_i (2 i - n - 1) x_(i): no n^2 pairs.
    ranks = 2.0 * torch.arange(1, n + 1, dtype=torch.float64, device=x.device) - n - 1
    spread = 2.0 * torch.tensordot(ranks, x.sort(dim=0).values, dims=1)
    return (x - y).abs().mean(dim=0) - 0.5 * spread / (n * (n - 1) if unbiased else n * n)


def pinball(quantiles: Float[Tensor, "levels *shape"], levels: Float[Tensor, " levels"], y: Tensor) -> Tensor:
    """Quantile loss ``(1{y < q} - level) (q - y)``, (levels, *shape)."""
    if len(quantiles) != len(levels) or quantiles.shape[1:] != y.shape:
        raise BadValue(f"quantiles {tuple(quantiles.shape)} must be ({len(levels)}, *{tuple(y.shape)})")
    if not ((levels > 0) & (levels < 1)).all():
        raise BadValue(f"quantile levels lie in (0, 1), got {levels.tolist()}")
    q, y = quantiles.double(), y.double()
    level = levels.double().reshape(-1, *(1,) * y.ndim)
    return ((y < q).double() - level) * (q - y)


def crps_quantiles(quantiles: Tensor, levels: Tensor, y: Tensor) -> Tensor:
    """CRPS from quantiles: ``2 integral pinball d level``, by the mean over the given levels.

    An approximation that tends to the CRPS for many levels at the midpoints ``(i - 1/2) / n``.
    """
    return 2.0 * pinball(quantiles, levels, y).mean(dim=0)
