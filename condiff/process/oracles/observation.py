"""Data given a linear observation ``y = A x0 + e``, ``e ~ N(0, std^2)``: an oracle again, exact.

A Gaussian mixture given y is a Gaussian mixture, and a finite data set given y is the same set with other
weights. So the law that posterior guidance (inpainting, deblurring, inverse problems) approximates is known, with
its denoiser at every level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadValue, Incompatible
from condiff.process.oracles.components import Components, make_components
from condiff.process.oracles.finite import Empirical
from condiff.process.oracles.mixtures import Mixture

Operator = Tensor | Callable[[Tensor], Tensor]


def operator_matrix(operator: Operator, shape: tuple[int, ...]) -> Tensor:
    """A linear observation as a matrix (M, D) in float64.

    Args:
        operator: (M, D); booleans of a sample's shape (observed entries); or a function of batches (B, *shape).
        shape: of a sample, D entries.

    Raises:
        BadValue: another shape, or a function that isn't linear.
    """
    dims = int(torch.Size(shape).numel())
    eye = torch.eye(dims, dtype=torch.float64)
    if isinstance(operator, Tensor):
        if operator.dtype == torch.bool and operator.shape == shape:
            return eye[operator.flatten()]
        if operator.ndim == 2 and operator.shape[1] == dims and operator.dtype.is_floating_point:
            return operator.double()
        raise BadValue(
            f"an operator is a matrix (M, {dims}), booleans {shape}, or a function; "
            f"got {operator.dtype} {tuple(operator.shape)}"
        )
    columns = operator(eye.reshape(dims, *shape)).double().flatten(1)
    zero = operator(torch.zeros(1, *shape, dtype=torch.float64))
    double = operator(2.0 * torch.ones(1, *shape, dtype=torch.float64)).flatten()
    if bool((zero != 0.0).any()) or not torch.allclose(double.double(), 2.0 * columns.sum(0)):
        raise BadValue("the operator isn't linear")
    return columns.mT


def observed(oracle: Mixture | Empirical, operator: Operator, y: Any, std: float) -> Mixture | Empirical:
    """The oracle of x0 given ``y = A x0 + std e``; conditions on a label still work.

    Args:
        oracle: a :func:`mixture`, :func:`gaussian` or :func:`empirical` oracle.
        operator: A, see :func:`operator_matrix`.
        y: one observation, M entries of any shape.
        std: its noise; 0 for exact observations of a Gaussian mixture.

    Raises:
        BadValue: shapes that don't fit, std < 0, an observation that is impossible or redundant at std = 0.
        Incompatible: another oracle.
    """
    matrix = operator_matrix(operator, oracle.shape)
    y = torch.as_tensor(y, dtype=torch.float64).flatten()
    if y.shape != matrix.shape[:1]:
        raise BadValue(f"the operator makes {matrix.shape[0]} values, the observation has {y.numel()}")
    if isinstance(oracle, Empirical):
        if not std > 0.0:
            raise BadValue(f"a finite data set needs std > 0, got {std}")
        away = (y - oracle.points @ matrix.mT) / std
        return replace(oracle, log_weights=(oracle.log_weights - 0.5 * (away**2).sum(-1)).log_softmax(0))
    if not isinstance(oracle, Mixture):
        raise Incompatible(f"observed() knows mixtures and empirical oracles, not {type(oracle).__name__}")
    if not std >= 0.0:
        raise BadValue(f"std must be >= 0, got {std}")
    return _condition(oracle, matrix, y, std)


def _condition(oracle: Mixture, matrix: Tensor, y: Tensor, std: float) -> Mixture:
    """Each component by the Kalman update, its weight by the likelihood of y."""
    means, covs = oracle.components.means, oracle.components.covariances
    spread = matrix @ covs @ matrix.mT + std**2 * torch.eye(len(matrix), dtype=torch.float64)
    if float(torch.linalg.eigvalsh(spread).min()) <= 1e-13 * float(spread.abs().max()):
        raise BadValue("at std = 0 the observed combinations must be independent and have variance")
    gain = torch.linalg.solve(spread, matrix @ covs).mT
    new_means = means + torch.einsum("kdm,km->kd", gain, y - means @ matrix.mT)
    keep = torch.eye(means.shape[-1], dtype=torch.float64) - gain @ matrix
    new_covs = keep @ covs @ keep.mT + std**2 * gain @ gain.mT  # Joseph form: stays positive semi-definite
    log_y = Components(means @ matrix.mT, *torch.linalg.eigh(spread)).fit(y[None, None], 1.0, 0.0).log_prob[0]
    components, _ = make_components(new_means, 0.5 * (new_covs + new_covs.mT), None)
    return replace(oracle, components=components, log_weights=(oracle.log_weights + log_y).log_softmax(0))
