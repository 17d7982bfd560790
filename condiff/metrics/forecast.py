"""Scores of probabilistic forecasts: the continuous ranked probability score, and relatives over whole data sets.

``CRPS(F, y) = integral (F(x) - 1{x >= y})^2 dx = E|X - y| - E|X - X'| / 2``, in the units of y, 0 at best. For a
point forecast it is the absolute error. Papers on forecasting report the weighted quantile loss as "CRPS".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate, NonFinite
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


DECILES = tuple(k / 10 for k in range(1, 10))


def sample_quantiles(
    samples: Float[Tensor, "members *shape"], levels: Sequence[float] | Tensor
) -> Float[Tensor, "levels *shape"]:
    """Quantiles of an ensemble, each the member of the nearest rank, ``round((members - 1) level)``, as in GluonTS."""
    levels = torch.as_tensor(levels, dtype=torch.float64)
    rank = ((len(samples) - 1) * levels).round().long()
    return samples.sort(dim=0).values[rank.to(samples.device)]


def weighted_quantile_loss(
    samples: Float[Tensor, "members *shape"], y: Float[Tensor, "*shape"], levels: Sequence[float] = DECILES
) -> float:
    """``mean over levels of 2 sum pinball / sum |y|``, sums over all of y: GluonTS's ``mean_wQuantileLoss``.

    What tables of "CRPS" hold. Entries of y that are NaN don't count.

    Raises:
        BadValue: shapes or levels that don't fit. Degenerate: y that is 0 throughout.
    """
    there, at = _observed(samples, y), torch.as_tensor(levels, dtype=torch.float64)
    loss = 2.0 * pinball(sample_quantiles(samples, at), at, y.nan_to_num())
    return float(torch.where(there, loss, 0.0).flatten(1).sum(1).mean() / _size(y, there))


def normalised_deviation(samples: Float[Tensor, "members *shape"], y: Float[Tensor, "*shape"]) -> float:
    """ND: ``sum |y - median| / sum |y|``. NaN in y doesn't count. Raises: as :func:`weighted_quantile_loss`."""
    there, median = _observed(samples, y), sample_quantiles(samples, [0.5])[0].double()
    return float(torch.where(there, (median - y).abs(), 0.0).sum() / _size(y, there))


def normalised_rmse(samples: Float[Tensor, "members *shape"], y: Float[Tensor, "*shape"]) -> float:
    """NRMSE: ``sqrt(mean (y - mean)^2) / mean |y|``. NaN in y doesn't count. Raises: as the others."""
    there = _observed(samples, y)
    square = torch.where(there, (samples.double().mean(0) - y).square(), 0.0)
    count = there.sum()
    return float((square.sum() / count).sqrt() / (_size(y, there) / count))


def _observed(samples: Tensor, y: Tensor) -> Tensor:
    if samples.shape[1:] != y.shape or len(samples) < 1:
        raise BadValue(f"samples {tuple(samples.shape)} must be (members, *{tuple(y.shape)}), as y is")
    if not torch.isfinite(samples).all():
        raise NonFinite("samples hold NaN or infinity")
    return ~torch.isnan(y)


def _size(y: Tensor, there: Tensor) -> Tensor:
    size = torch.where(there, y.double().abs(), 0.0).sum()
    if not float(size) > 0.0:
        raise Degenerate("y is 0 throughout, or nothing of it is observed: scores relative to its size don't exist")
    return size
