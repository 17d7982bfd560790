"""Gaussian data by its mean and principal components, and the closed form of its probability-flow ODE.

``x0 ~ N(mean, U^T diag(v) U + w (1 - U^T U))``: r principal components, the rows of U, with variances v, and one
variance w for all other directions. With ``V_k(t) = data_t^2 v_k + noise_t^2``, along any path from data to noise,

    x_s = data_s mean + sum_k sqrt(V_k(s) / V_k(t)) u_k (u_k . (x_t - data_t mean)) + (the rest, with w)

solves the ODE from level t to level s, in either direction (Wang & Vastola 2023, arXiv 2303.02490; theirs has w = 0).
Nothing is divided by a variance of the data, so a rank-deficient covariance is as good as any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from condiff.errors import BadFile, BadType, BadValue, Degenerate, Incompatible
from condiff.files import read_tensors, write_tensors
from condiff.process.algebra import Weight, holds, match
from condiff.process.gaussian import Process
from condiff.process.level import Level, Time
from condiff.random import as_source
from condiff.typing import Float, Tensor

Spread = tuple[Tensor, Weight]  # along the components (r,) or (B, r); in the other directions, a number or (B, 1)
_MARK = "condiff.PrincipalLaw"


@dataclass(frozen=True, eq=False, repr=False)
class PrincipalLaw:
    """Mean and principal components of data.

    Args:
        mean: of the shape of a sample.
        basis: the components as orthonormal rows, (r, D), D the number of entries of a sample.
        variances: along them, (r,); what round-off made negative counts as 0.
        residual: variance in each of the D - r other directions.
        low, high: the range of the values that it was made from, None when unknown.
        count: from how many samples it was made, None when unknown.

    Raises:
        BadValue: shapes that don't fit, rows that aren't orthonormal, negative variances, NaN.

    Example:
        >>> law = PrincipalLaw.from_covariance([0.0, 0.0], [[2.0, 0.5], [0.5, 1.0]])
        >>> law.transport(Gaussian(EDM()), 80.0 * torch.randn(4, 2), 1.0, 0.5)
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    residual: float = 0.0
    low: float | None = None
    high: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "basis", "variances"):
            value = torch.as_tensor(getattr(self, name))
            value = value if value.dtype.is_floating_point and name != "variances" else value.double()
            if not bool(torch.isfinite(value).all()):
                raise BadValue(f"{name} of a Gaussian law must be finite")
            object.__setattr__(self, name, value)
        rank, dims = len(self.variances), self.mean.numel()
        if self.basis.shape != (rank, dims) or self.variances.ndim != 1 or rank > dims or dims == 0:
            raise BadValue(
                f"{rank} components of samples {tuple(self.mean.shape)} need a basis {(rank, dims)}, "
                f"got {tuple(self.basis.shape)}"
            )
        gram = self.basis @ self.basis.mT
        room = 1e-8 if gram.dtype == torch.float64 else 1e-3
        if not torch.allclose(gram, torch.eye(rank, dtype=gram.dtype, device=gram.device), rtol=0.0, atol=room):
            raise BadValue("the rows of the basis must be orthonormal")
        lowest = -1e-9 * max(float(self.variances.max()), 1e-300) if rank else 0.0
        if not (math.isfinite(self.residual) and self.residual >= 0.0) or bool((self.variances < lowest).any()):
            raise BadValue(f"variances must be >= 0, got {self.variances.tolist()[-3:]} and residual {self.residual}")
        object.__setattr__(self, "variances", self.variances.clamp_min(0.0))

    @classmethod
    def from_covariance(cls, mean: Any, cov: Any, rank: int | None = None, **facts: Any) -> PrincipalLaw:
        """The law of a mean (*shape) and a covariance (D, D), with the ``rank`` largest components, all by default.

        The variance beyond them is spread evenly over the other directions.
        """
        mean, cov = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, cov))
        dims = mean.numel()
        if cov.shape != (dims, dims) or not torch.allclose(cov, cov.mT, rtol=1e-9, atol=1e-12):
            raise BadValue(f"cov must be symmetric, {(dims, dims)}, got {tuple(cov.shape)}")
        rank = check_rank(dims if rank is None else rank, dims)
        variances, vectors = torch.linalg.eigh(cov)
        variances, vectors = variances.flip(0), vectors.flip(1)
        if float(variances[-1]) < -1e-9 * max(float(variances[0]), 1e-300):
            raise BadValue(f"cov must be positive semi-definite; the smallest eigenvalue is {variances[-1]:.3g}")
        variances = variances.clamp_min(0.0)
        residual = float(variances[rank:].mean()) if rank < dims else 0.0
        return cls(mean, vectors[:, :rank].mT.contiguous(), variances[:rank], residual, **facts)

    # Facts

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        return tuple(self.mean.shape)

    @property
    def rank(self) -> int:
        return len(self.variances)

    @property
    def dims(self) -> int:
        return self.mean.numel()

    @property
    def std(self) -> float:
        """Root mean square deviation of an entry."""
        return math.sqrt((float(self.variances.sum()) + (self.dims - self.rank) * self.residual) / self.dims)

    def to(self, device: Any) -> PrincipalLaw:
        """The law on another device."""
        if self.mean.device == torch.device(device):
            return self
        mean, basis, variances = (v.to(device) for v in (self.mean, self.basis, self.variances))
        return PrincipalLaw(mean, basis, variances, self.residual, self.low, self.high, self.count)

    # The path

    def spread(self, level: Level) -> Spread:
        """``V = data^2 v + noise^2`` of the state at a level, along the components and in the other directions."""
        a2, s2 = (_column(w, self.variances) ** 2 for w in (level.data, level.noise))
        return a2 * self.variances + s2, a2 * self.residual + s2

    def gains(self, process: Process, t: Time, s: Time) -> Spread:
        """``sqrt(V(s) / V(t))``: by how much a displacement at level t has grown when level s is reached.

        Raises:
            Degenerate: from a level without noise, where a direction has no variance either.
            Incompatible: a process with an endpoint, or noise that isn't Gaussian.
        """
        check_path(process)
        (here, rest), (there, rest_there) = (self.spread(process.at(time)) for time in (t, s))
        alone = self.rank == self.dims
        if not (holds(here > 0.0) and (alone or holds(rest > 0.0))):
            raise Degenerate(
                f"the state at t = {process.at(t).t} has no variance in some direction: start from a level with noise"
            )
        return torch.sqrt(there / here), (1.0 if alone else (rest_there / rest) ** 0.5)

    def transport(
        self, process: Process, x: Float[Tensor, "batch *shape"], t: Time, s: Time
    ) -> Float[Tensor, "batch *shape"]:
        """The state at level s of the ODE's solution through ``x`` at level t; x itself, bit for bit, when they agree.

        Raises:
            BadValue: samples of another shape.
            Degenerate, Incompatible: as :meth:`gains`.
        """
        self.check_state(x)
        t, s = process.at(t), process.at(s)
        gains = self.gains(process, t, s)
        if not isinstance(t.t, Tensor) and t.t == s.t:
            return x
        return self.scaled(self.away(x, t), gains).add(_times(s.data, self.mean, x)).reshape(x.shape)

    def emergence(self, process: Process) -> Tensor:
        """The time, for each component, at which ``data^2 v = noise^2``: half of its variance is decided there. (r,)"""
        check_path(process)
        return process.time(-torch.log(self.variances))

    def away(self, x: Tensor, level: Level) -> Tensor:
        """``x - data mean``, flattened to (B, D)."""
        return x.flatten(1) - _times(level.data, self.mean, x)

    def scaled(self, away: Tensor, by: Spread) -> Tensor:
        """(B, D) with each component multiplied by its number, and what is left by the other one."""
        along, rest = (w.to(away) if isinstance(w, Tensor) else w for w in by)
        basis = self.basis.to(away)
        return rest * away + ((along - rest) * (away @ basis.mT)) @ basis

    def sample(self, num: int, rng: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws of the data, (num, *shape)."""
        z = as_source(rng).normal((num, *self.shape), torch.float64).flatten(1)
        root = torch.sqrt(self.variances), self.residual**0.5
        return (self.scaled(z, root) + self.mean.double().flatten()).reshape(num, *self.shape).to(dtype)

    def check_state(self, x: Tensor) -> None:
        """
        Raises:
            BadValue: samples of another shape.
            BadType: integers.
        """
        if not x.dtype.is_floating_point:
            raise BadType(f"a state must be a floating point tensor, got {x.dtype}")
        if tuple(x.shape[1:]) != self.shape:
            raise BadValue(f"the statistics are of samples {self.shape}, got a state of shape {tuple(x.shape)}")

    # Files

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        facts = {"low": self.low, "high": self.high, "count": self.count}
        notes = {k: str(v) for k, v in facts.items() if v is not None} | {"residual": repr(self.residual)}
        tensors = {"mean": self.mean, "basis": self.basis, "variances": self.variances}
        write_tensors(path, tensors, {"kind": _MARK, **notes})

    @classmethod
    def load(cls, path: str | Path) -> PrincipalLaw:
        """Read what :meth:`save` wrote.

        Raises:
            BadFile: missing, damaged, or of another kind.
        """
        tensors, notes = read_tensors(path)
        if notes.get("kind") != _MARK:
            raise BadFile(f"{path} doesn't hold a mean and principal components: write it with `condiff statistics`")
        low, high = (float(notes[k]) if k in notes else None for k in ("low", "high"))
        count = int(notes["count"]) if "count" in notes else None
        residual = float(notes["residual"])
        return cls(tensors["mean"], tensors["basis"], tensors["variances"], residual, low, high, count)

    def __repr__(self) -> str:
        return f"PrincipalLaw(shape={self.shape}, rank={self.rank}, std={self.std:.4g}, count={self.count})"


def check_rank(rank: int, dims: int) -> int:
    """
    Raises:
        BadValue: not between 1 and the number of entries of a sample.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= dims:
        raise BadValue(f"rank must lie between 1 and {dims}, the number of entries of a sample; got {rank}")
    return rank


def check_path(process: Any) -> None:
    """
    Raises:
        Incompatible: anything but a path from data to Gaussian noise.
    """
    if not isinstance(process, Process) or process.has_source or not process.noise_law.gaussian:
        raise Incompatible(f"the closed form is of paths from data to Gaussian noise, not of {process}")


def _column(w: Weight, like: Tensor) -> Weight:
    if not isinstance(w, Tensor) or w.ndim == 0:
        return w
    if w.ndim > 1:
        raise Incompatible("Gaussian data have one time a sample here; times per frame mix its components")
    return w.reshape(-1, 1).to(like.device)


def _times(w: Weight, mean: Tensor, x: Tensor) -> Tensor:
    """``w mean`` flattened, in x's dtype."""
    flat = mean.to(x).flatten()
    return match(w, x.flatten(1)) * flat if isinstance(w, Tensor) and w.ndim else float(w) * flat
