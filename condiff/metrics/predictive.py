"""Linear predictive score: how good a simple forecaster is that has only seen synthetic series (Kollovieh 2023).

A ridge regression from context to horizon is fitted on synthetic windows and forecasts real ones. As low as the same
regression fitted on real windows, and the synthetic ones hold what a forecaster needs; it may be lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.errors import BadValue, NonFinite
from condiff.typing import Float


def ridge(
    x: Float[Tensor, "n features"], y: Float[Tensor, "n horizon"], penalty: float = 1.0
) -> tuple[Float[Tensor, "features horizon"], Float[Tensor, " horizon"]]:
    """``(W, b)`` that minimise ``|y - x W - b|^2 + penalty |W|^2``, float64; the intercept isn't penalised.

    Raises:
        BadValue: other shapes, a negative penalty. NonFinite: NaN.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 2 or not penalty >= 0.0:
        raise BadValue(
            f"ridge regression takes x (n, features), y (n, horizon) with n >= 2 and a penalty >= 0, got "
            f"{tuple(x.shape)}, {tuple(y.shape)}, {penalty}"
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise NonFinite("x or y hold NaN or infinity")
    x, y = x.double(), y.double()
    mean, level = x.mean(0), y.mean(0)
    gram = (x - mean).mT @ (x - mean) + penalty * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    weights = torch.linalg.lstsq(gram, (x - mean).mT @ (y - level)).solution
    return weights, level - mean @ weights


def linear_predictive_score(
    synthetic: Float[Tensor, "n length"], real: Float[Tensor, "m length"], horizon: int, penalty: float = 1.0
) -> float:
    """LPS: ``sum |forecast - y| / sum |y|`` over real windows, by ridge regression fitted on synthetic ones.

    That is the weighted quantile loss ("CRPS") of a point forecast, 0 at best.

    Args:
        synthetic: windows that are scaled already, each by the mean size of its context.
        real: windows in their own units; each is scaled by the mean size of its context (1 where that is 0), and
            weighs as much as it is large.
        horizon: how many steps at the end are forecast.
        penalty: of the regression.

    Raises:
        BadValue: windows of different lengths, a horizon that leaves no context. NonFinite: NaN.
    """
    length = synthetic.shape[1]
    if real.shape[1] != length or not 1 <= horizon < length:
        raise BadValue(
            f"both kinds of windows have one length, longer than the horizon, got {tuple(synthetic.shape)}, "
            f"{tuple(real.shape)} and {horizon}"
        )
    context = length - horizon
    weights, bias = ridge(synthetic[:, :context], synthetic[:, context:], penalty)
    size = real[:, :context].double().abs().mean(1, keepdim=True)
    scale = torch.where(size > 0.0, size, 1.0)
    error = (real[:, :context].double() / scale @ weights + bias) * scale - real[:, context:]
    return float(error.abs().sum() / real[:, context:].double().abs().sum())
