"""Fréchet distance between Gaussians fitted to two sets of features (Dowson & Landau 1982; Heusel 2017).

``d^2 = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)``

The last trace is the nuclear norm of ``R_a R_b^T`` for any factors ``S = R^T R``: its singular values are the
square roots of the eigenvalues of ``S_a S_b``. So no matrix square root is taken, rank-deficient covariances
(fewer samples than features) are no special case, and no ``eps I`` is added.

Like FID this is the *squared* distance. It is biased upwards for few samples: compare equal sample sizes, and
beside the floor of two sets of real data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.errors import BadValue, NonFinite
from condiff.metrics.checks import two_sets
from condiff.typing import Float


def _factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and R with ``R^T R`` the unbiased covariance, from a QR decomposition of the centred rows."""
    mean = x.mean(dim=0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R


def _distance(mean_a: Tensor, r_a: Tensor, mean_b: Tensor, r_b: Tensor) -> float:
    cross = torch.linalg.svdvals(r_a @ r_b.T).sum()
    squared = (mean_a - mean_b).square().sum() + r_a.square().sum() + r_b.square().sum() - 2.0 * cross
    return max(float(squared), 0.0)  # round-off of the difference


def frechet(features_a: Float[Tensor, "n *features"], features_b: Float[Tensor, "m *features"]) -> float:
    """Squared Fréchet distance between two sets of features, each at least two rows.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> round(frechet(x, x + 2.0), 6)
        4.0
    """
    a, b = two_sets(features_a, features_b, ("features_a", "features_b"), least=2)
    return _distance(*_factor(a), *_factor(b))


def _root(cov: Tensor, name: str) -> Tensor:
    if not torch.isfinite(cov).all():
        raise NonFinite(f"{name} holds NaN or infinity")
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise BadValue(f"{name} must be square, got {tuple(cov.shape)}")
    if not torch.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * float(cov.abs().max())):
        raise BadValue(f"{name} must be symmetric")
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    if float(values.min()) < -1e-6 * float(values.abs().max()):
        raise BadValue(f"{name} must be positive semi-definite, its smallest eigenvalue is {float(values.min()):g}")
    return (vectors * values.clamp_min(0.0).sqrt()).T


def frechet_gaussian(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Fréchet distance between two Gaussians with given moments, such as stored statistics."""
    mean_a, cov_a, mean_b, cov_b = (torch.as_tensor(v).double() for v in (mean_a, cov_a, mean_b, cov_b))
    if not mean_a.shape == mean_b.shape == cov_a.shape[:1] == cov_b.shape[:1]:
        shapes = [tuple(v.shape) for v in (mean_a, cov_a, mean_b, cov_b)]
        raise BadValue(f"moments of one number of features are needed: (D,), (D, D), (D,), (D, D); got {shapes}")
    return _distance(mean_a, _root(cov_a, "cov_a"), mean_b, _root(cov_b, "cov_b"))
