"""Mean and principal components of data that doesn't fit in memory, in a few passes and in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from condiff.data.base import Data
from condiff.errors import BadType, BadValue
from condiff.process import PrincipalLaw
from condiff.process.principal_law import check_rank
from condiff.random import as_source
from condiff.typing import Float, Tensor

DENSE = 1024  # entries of a sample up to which the whole covariance is accumulated
OVERSAMPLE, ROUNDS = 16, 4  # of the block Krylov method beyond that
MOST = 512  # components that are kept by default beyond that


def principal_law(
    data: Data | Float[Tensor, "n *shape"],
    rank: int | None = None,
    *,
    rows: Tensor | None = None,
    batch: int = 256,
) -> PrincipalLaw:
    """The Gaussian law of a data set: mean, largest principal components, the rest of the variance spread evenly.

    Samples of up to 1024 entries: the exact covariance, in one pass. Larger ones: the block Krylov
    method (Musco & Musco 2015), which never forms the covariance, in six passes.

    Args:
        data: a data set (as its networks see it, so images in [-1, 1]), or samples, such as latents.
        rank: number of components; all, or 512 of larger samples, by default. At most one less than samples.
        rows: which rows, all by default; those of a class, for a law per class.
        batch: samples in memory at a time.

    Raises:
        BadValue: fewer than two samples, a rank out of range, constant data, NaN.
        BadType: integers (tokens).
    """
    count, read = _reader(data, rows, batch)
    if count < 2:
        raise BadValue(f"a covariance needs at least two samples, got {count}")
    first = next(read())
    shape, dims = tuple(first.shape[1:]), first[0].numel()
    most = min(dims, count - 1)
    wanted = rank if rank is not None else most if dims <= DENSE else min(most, MOST)
    kept = check_rank(wanted, most)
    mean, total, low, high = _mean(read, count)
    if not total > 0.0:
        raise BadValue(f"all {count} samples are the same: there is no variance to speak of")
    if dims <= DENSE:
        variances, basis = _dense(read, mean, count)
    else:
        variances, basis = _krylov(read, mean, count, min(kept + OVERSAMPLE, most))
    variances, basis = variances[:kept].clamp_min(0.0), basis[:kept]
    residual = max(total - float(variances.sum()), 0.0) / (dims - kept) if kept < dims else 0.0
    return PrincipalLaw(mean.reshape(shape), basis.contiguous(), variances, residual, low, high, count)


def class_laws(data: Data, rank: int | None = None, *, batch: int = 256) -> list[PrincipalLaw]:
    """A Gaussian law for each class of a labelled data set.

    Raises:
        BadValue: data without labels, a class with fewer than two samples.
    """
    labels = data.labels
    if labels is None:
        raise BadValue(f"{data.name} has no labels: fit one law for all, principal_law(data)")
    few = [name for k, name in enumerate(data.classes) if int((labels == k).sum()) < 2]
    if few:
        raise BadValue(f"a law for each class needs two samples of each; too few of {', '.join(few)}")
    return [
        principal_law(data, rank, rows=torch.nonzero(labels == k).flatten(), batch=batch)
        for k in range(len(data.classes))
    ]


Reader = Callable[[], Iterator[Tensor]]


def _reader(data: Data | Tensor, rows: Tensor | None, batch: int) -> tuple[int, Reader]:
    """How many samples, and a function that reads them again, in float64."""
    if isinstance(data, torch.Tensor) and data.ndim < 2:
        raise BadValue(f"samples must be (samples, *shape), got {tuple(data.shape)}")
    index = torch.arange(len(data)) if rows is None else rows

    def read() -> Iterator[Tensor]:
        for part in index.split(batch):
            x = data[part] if isinstance(data, torch.Tensor) else data.batch(part)["x"]
            if not x.dtype.is_floating_point:
                raise BadType(f"principal components are of floating point samples, got {x.dtype}")
            if not bool(torch.isfinite(x).all()):
                raise BadValue("the samples hold NaN or infinity")
            yield x.detach().double().cpu()

    return len(index), read


def _mean(read: Reader, count: int) -> tuple[Tensor, float, float, float]:
    """Mean (D,), total variance, smallest and largest value, in one pass (Chan, Golub & LeVeque 1983)."""
    seen, mean, m2, low, high = 0, torch.zeros(()), 0.0, float("inf"), float("-inf")
    for x in read():
        x = x.flatten(1)
        here = x.mean(0)
        delta = here - mean
        m2 += float((x - here).square().sum() + delta.square().sum() * (seen * len(x) / (seen + len(x))))
        mean = mean + delta * (len(x) / (seen + len(x)))
        seen, low, high = seen + len(x), min(low, float(x.min())), max(high, float(x.max()))
    return mean, m2 / count, low, high


def _dense(read: Reader, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    cov = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for x in read():
        away = x.flatten(1) - mean
        cov += away.mT @ away
    variances, vectors = torch.linalg.eigh(cov / count)
    return variances.flip(0), vectors.flip(1).mT


def _krylov(read: Reader, mean: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues and eigenvectors of the covariance, which is only ever multiplied with."""

    def times_covariance(q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for x in read():
            away = x.flatten(1) - mean
            out += away.mT @ (away @ q)
        return out / count

    block, blocks = as_source(0).normal((len(mean), width), torch.float64), []
    for _ in range(ROUNDS):
        block = torch.linalg.qr(times_covariance(block)).Q
        blocks.append(block)
    q = torch.linalg.qr(torch.cat(blocks, 1)).Q if ROUNDS * width <= len(mean) else block
    small = q.mT @ times_covariance(q)
    variances, vectors = torch.linalg.eigh(0.5 * (small + small.mT))
    return variances.flip(0), (q @ vectors.flip(1)).mT
