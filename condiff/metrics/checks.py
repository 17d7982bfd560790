"""What every metric asks of its arguments, and distances between rows in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, NonFinite

BLOCK = 2**24  # numbers in a block of distances: 128 MB in float64
_EXACT_WIDTH = 256


def as_rows(x: Tensor, name: str, least: int = 1) -> Tensor:
    """(N, ...) -> float64 (N, D), finite, with at least ``least`` rows.

    Raises:
        BadType, BadValue, NonFinite: naming the argument.
    """
    if not isinstance(x, Tensor):
        raise BadType(f"{name} must be a tensor (N, ...), got {type(x).__name__}")
    if x.ndim == 0 or len(x) < least:
        raise BadValue(f"{name} needs at least {least} rows, got shape {tuple(x.shape)}")
    rows = x.detach().double().flatten(1) if x.ndim > 1 else x.detach().double()[:, None]
    finite = torch.isfinite(rows).all(dim=1)
    if not finite.all():
        bad = torch.nonzero(~finite).flatten()
        raise NonFinite(f"{name} holds NaN or infinity in {len(bad)} of {len(x)} rows, the first is row {int(bad[0])}")
    return rows


def two_sets(a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b"), least: int = 1) -> tuple[Tensor, Tensor]:
    """Both as :func:`as_rows`, of one width.

    Raises:
        BadValue: rows of different shapes.
    """
    rows_a, rows_b = as_rows(a, names[0], least), as_rows(b, names[1], least)
    if a.shape[1:] != b.shape[1:]:
        raise BadValue(
            f"rows of {names[0]} {tuple(a.shape[1:])} and {names[1]} {tuple(b.shape[1:])} must have one shape"
        )
    return rows_a, rows_b.to(rows_a.device)


def same_shape(a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b")) -> tuple[Tensor, Tensor]:
    """Both in float64, finite and of one shape.

    Raises:
        BadValue, NonFinite: naming the arguments.
    """
    if a.shape != b.shape:
        raise BadValue(f"{names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)} must have one shape")
    as_rows(a, names[0])
    as_rows(b, names[1])
    return a.detach().double(), b.detach().double()


def blocks(a: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """Rows of ``a`` in blocks whose distances to ``columns`` others fit into memory, with their offsets."""
    size = max(1, BLOCK // max(1, columns))
    for start in range(0, len(a), size):
        yield start, a[start : start + size]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of float64 rows; direct differences up to 256 columns, else by matrix products.

    Matrix products lose half of the digits of very small distances; they are taken about a common centre.
    """
    if a.shape[1] <= _EXACT_WIDTH:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    centre = b.mean(dim=0)
    return torch.cdist(a - centre, b - centre, compute_mode="use_mm_for_euclid_dist")


def nearest(a: Tensor, b: Tensor, k: int = 1, skip_self: bool = False) -> Tensor:
    """Distance of each row of ``a`` to its k-th nearest row of ``b``: (N,).

    Args:
        skip_self: row i of ``a`` *is* row i of ``b`` and doesn't count.
    """
    out = []
    for start, rows in blocks(a, len(b)):
        d = distances(rows, b)
        if skip_self:
            here = torch.arange(len(rows), device=d.device)
            d[here, here + start] = torch.inf
        out.append(d.kthvalue(k, dim=1).values)
    return torch.cat(out)


def sum_of_distances(a: Tensor, b: Tensor, skip_self: bool = False) -> float:
    """Sum of all N M distances; ``skip_self`` when a *is* b: a row's distance to itself is 0 without round-off."""
    total = 0.0
    for start, rows in blocks(a, len(b)):
        d = distances(rows, b)
        total += float(d.sum()) - (float(d.diagonal(start).sum()) if skip_self else 0.0)
    return total
