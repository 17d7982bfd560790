"""The algebra of Gaussian mixtures under ``x_t = a x0 + s z``, which the mixture oracles share.

With component k of the data ``N(m_k, C_k)``, ``V_k = a C_k a + s^2``, ``u_k = V_k^{-1} (x_t - a m_k)``::

    log N_k  = -1/2 (u_k . (x_t - a m_k) + log det V_k + D log 2 pi)
    E_k[x0]  = m_k + C_k a u_k
    E_k[z]   = s u_k                   score_k = -u_k

No formula divides by a or s, so both ends of the path are regular. Diagonal covariances work elementwise, full
ones in their eigenbasis (worked out once); only full covariances with a time per frame need a Cholesky factor
per call. Everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue, Degenerate
from condiff.process.algebra import Weight, match


class Fit(NamedTuple):
    """What the components say about a batch of states."""

    log_prob: Tensor  # (B, K) log N_k(x_t)
    x0: Tensor  # (B, K, D) E_k[x0 | x_t]
    noise: Tensor  # (B, K, D) E_k[z | x_t]
    score: Tensor  # (B, K, D) grad log N_k


@dataclass(frozen=True, eq=False)
class Components:
    """K Gaussians in D dimensions.

    Args:
        means: (K, D), or (B, K, D) when they differ per row.
        variances: (K, D): of the coordinates, or of the principal axes in ``basis``.
        basis: (K, D, D) principal axes as columns, None when they are the coordinates.
    """

    means: Tensor
    variances: Tensor
    basis: Tensor | None = None

    def to(self, device: torch.device) -> Components:
        if self.means.device == device:
            return self
        basis = None if self.basis is None else self.basis.to(device)
        return Components(self.means.to(device), self.variances.to(device), basis)

    @property
    def covariances(self) -> Tensor:
        """(K, D, D)."""
        if self.basis is None:
            return torch.diag_embed(self.variances)
        return (self.basis * self.variances[:, None, :]) @ self.basis.mT

    def times_covariance(self, u: Tensor) -> Tensor:
        """``C_k u_k`` for u (B, K, D)."""
        if self.basis is None:
            return self.variances * u
        return self._out(self.variances * self._in(u))

    def times_root(self, z: Tensor, index: Tensor) -> Tensor:
        """``C_k^{1/2} z_i`` with ``k = index_i``, for z (N, D)."""
        scaled = self.variances[index].sqrt() * z
        return scaled if self.basis is None else torch.einsum("nde,ne->nd", self.basis[index], scaled)

    def _in(self, u: Tensor) -> Tensor:
        return torch.einsum("bkd,kde->bke", u, self.basis)

    def _out(self, u: Tensor) -> Tensor:
        return torch.einsum("bke,kde->bkd", u, self.basis)

    def fit(self, x: Tensor, a: Weight, s: Weight) -> Fit:
        """Likelihoods and posterior means for x (B, 1, D); a and s are numbers or broadcast to (B, 1, D)."""
        away = x - a * self.means
        u, log_det = self._solve(away, a, s)
        log_prob = -0.5 * ((u * away).sum(-1) + log_det + x.shape[-1] * math.log(2.0 * math.pi))
        return Fit(log_prob, self.means + self.times_covariance(a * u), s * u, -u)

    def _solve(self, away: Tensor, a: Weight, s: Weight) -> tuple[Tensor, Tensor]:
        """``V^{-1} away`` (B, K, D) and ``log det V`` (B, K)."""
        if self.basis is not None and isinstance(a, Tensor) and a.shape[-1] != 1:
            return self._solve_dense(away, a, s)
        var = a * a * self.variances + s * s
        # Directions without any variance (all components share them) hold nothing to learn: their weight is 0.
        varies = var > 0.0
        var = torch.where(varies, var, 1.0)
        inverse = torch.where(varies, 1.0 / var, 0.0)
        u = inverse * away if self.basis is None else self._out(inverse * self._in(away))
        return u, torch.log(var).sum(-1)

    def _solve_dense(self, away: Tensor, a: Tensor, s: Weight) -> tuple[Tensor, Tensor]:
        var = a[..., :, None] * self.covariances * a[..., None, :] + torch.diag_embed(s * s * torch.ones_like(a))
        try:
            root = torch.linalg.cholesky(var)
        except torch.linalg.LinAlgError as error:
            raise Degenerate(
                "a singular covariance with clean frames: give the data some variance, or noise"
            ) from error
        u = torch.cholesky_solve(away[..., None], root)[..., 0]
        return u, 2.0 * torch.log(torch.diagonal(root, dim1=-2, dim2=-1)).sum(-1)


def weight_rows(weight: Weight, x: Tensor) -> Weight:
    """A coefficient against states flattened to (B, 1, D): a number, (B, 1, 1), or (B, 1, D) for a time per frame."""
    if not isinstance(weight, Tensor):
        return weight
    rows = match(weight, x.double())
    if weight.ndim <= 1:
        return rows.reshape(-1, 1, 1)
    return rows.expand(x.shape).reshape(x.shape[0], 1, -1)


def vanishes(weight: Weight) -> bool:
    """Whether a coefficient is 0 somewhere."""
    return bool((weight == 0.0).any()) if isinstance(weight, Tensor) else weight == 0.0


def flat(x: Tensor) -> Tensor:
    """(B, ...) -> (B, 1, D) in float64."""
    return x.double().reshape(x.shape[0], 1, -1)


def make_components(
    means: Tensor, covs: Tensor | None, stds: Tensor | float | None
) -> tuple[Components, tuple[int, ...]]:
    """Components and the shape of a sample from means (K, *shape) and either

    covs: (K, D, D) or (D, D) for all, D the number of entries of a sample; or
    stds: a number, (K,), or (K, *shape).

    Raises:
        BadValue: shapes that don't fit, covariances that are not symmetric and positive semi-definite.
    """
    means = torch.as_tensor(means, dtype=torch.float64)
    if means.ndim < 2:
        raise BadValue(f"means must be (components, *shape of a sample), got {tuple(means.shape)}")
    shape, rows = tuple(means.shape[1:]), means.flatten(1)
    if (covs is None) == (stds is None):
        raise BadValue("give either covs= or stds=")
    if covs is None:
        return Components(rows, _variances(torch.as_tensor(stds, dtype=torch.float64), means)), shape
    covs = torch.as_tensor(covs, dtype=torch.float64)
    count, dims = rows.shape
    covs = covs.expand(count, dims, dims) if covs.shape == (dims, dims) else covs
    if covs.shape != (count, dims, dims):
        raise BadValue(f"covs must be {(count, dims, dims)} or {(dims, dims)}, got {tuple(covs.shape)}")
    if not torch.allclose(covs, covs.mT, rtol=1e-9, atol=1e-12):
        raise BadValue("covs must be symmetric")
    variances, basis = torch.linalg.eigh(covs)
    zero = 1e-13 * variances.abs().amax(-1, keepdim=True) * dims  # what is below is round-off of a singular matrix
    if bool((variances < -zero).any()):
        raise BadValue(f"covs must be positive semi-definite; the smallest eigenvalue is {variances.min():.3g}")
    return Components(rows, torch.where(variances > zero, variances, 0.0), basis), shape


def _variances(stds: Tensor, means: Tensor) -> Tensor:
    if not bool((stds >= 0.0).all()):
        raise BadValue(f"stds must be >= 0, got {stds.min():.3g}")
    if stds.ndim == 1 and stds.shape[0] == means.shape[0]:
        stds = stds.reshape(-1, *(1,) * (means.ndim - 1))
    elif stds.ndim != 0 and stds.shape != means.shape:
        raise BadValue(f"stds must be a number, ({means.shape[0]},) or {tuple(means.shape)}, got {tuple(stds.shape)}")
    return (stds**2).expand(means.shape).flatten(1)
