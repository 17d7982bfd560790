"""Metrics from nearest neighbours: fidelity, variety, and whether training data are repeated."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from condiff.errors import BadValue
from condiff.metrics.checks import blocks, distances, nearest, two_sets
from condiff.typing import Float


class Manifold(NamedTuple):
    """``precision`` and ``recall`` (Kynkäänniemi 2019), ``density`` and ``coverage`` (Naeem 2020); 1 is ideal.

    Density may exceed 1. For n real and m fake rows of one law, coverage has the expectation
    ``1 - (n-1)...(n-k) / ((n+m-1)...(n+m-k))``, which is about ``1 - 2^-k`` for n = m.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def _inside(centres: Tensor, radii: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """How many balls hold each point, and whether each ball holds a point."""
    counts, holds = [], torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for _, rows in blocks(points, len(centres)):
        inside = distances(rows, centres) <= radii
        counts.append(inside.sum(dim=1))
        holds |= inside.any(dim=0)
    return torch.cat(counts), holds


def precision_recall(real: Float[Tensor, "n *shape"], fake: Float[Tensor, "m *shape"], k: int = 5) -> Manifold:
    """Fidelity and variety from balls around each row that reach its k-th nearest neighbour in its own set.

    * precision: fraction of ``fake`` in some ball of ``real``; recall: of ``real`` in some ball of ``fake``;
    * density: balls of ``real`` that hold a fake row, on average, over k; coverage: fraction of balls of ``real``
      that hold a fake row.

    Raises:
        BadValue: k < 1, or sets of at most k rows.
    """
    if k < 1:
        raise BadValue(f"k must be at least 1, got {k}")
    real, fake = two_sets(real, fake, ("real", "fake"), least=k + 1)
    counts, covered = _inside(real, nearest(real, real, k, skip_self=True), fake)
    recalled, _ = _inside(fake, nearest(fake, fake, k, skip_self=True), real)
    return Manifold(
        precision=float((counts > 0).double().mean()),
        recall=float((recalled > 0).double().mean()),
        density=float(counts.double().mean() / k),
        coverage=float(covered.double().mean()),
    )


class Memorisation(NamedTuple):
    """How near generated samples lie to training data, measured by how near held-out data lie.

    * ``nn_ratio``: median nearest-neighbour distance of generated over that of held-out; 1 is ideal, 0 is copying.
    * ``memorised_fraction``: generated samples nearer to the training data than all but ``level`` of held-out data;
      ``level`` is what a perfect model has.
    * ``nearer``: probability that a generated sample lies nearer than a held-out one; 0.5 is ideal, 1 is copying
      (the statistic of Meehan 2020).
    """

    nn_ratio: float
    memorised_fraction: float
    nearer: float
    level: float


def memorisation(
    generated: Float[Tensor, "n *shape"],
    train: Float[Tensor, "m *shape"],
    heldout: Float[Tensor, "h *shape"],
    level: float = 0.01,
) -> Memorisation:
    """Nearest-neighbour distances to the training data: generated against held-out.

    Raises:
        BadValue: a level outside (0, 1); held-out data that are all in the training data.
    """
    if not 0.0 < level < 1.0:
        raise BadValue(f"level is a fraction in (0, 1), got {level}")
    heldout, _ = two_sets(heldout, train, ("heldout", "train"))
    generated, train = two_sets(generated, train, ("generated", "train"))
    heldout = heldout.to(train.device)
    ours, theirs = nearest(generated, train), nearest(heldout, train)
    typical = float(theirs.median())
    if typical == 0.0:
        raise BadValue("the held-out data are in the training data: they can't say what distance is normal")
    ranks = theirs.sort().values
    below, up_to = torch.searchsorted(ranks, ours), torch.searchsorted(ranks, ours, right=True)
    return Memorisation(
        nn_ratio=float(ours.median()) / typical,
        memorised_fraction=float((ours < torch.quantile(theirs, level)).double().mean()),
        nearer=float(1.0 - (below + up_to).double().mean() / (2 * len(ranks))),
        level=level,
    )


def nearest_rows(queries: Float[Tensor, "n *shape"], train: Float[Tensor, "m *shape"]) -> tuple[Tensor, Tensor]:
    """Index and distance of the training row nearest to each query, to be shown beside it."""
    rows, train = two_sets(queries, train, ("queries", "train"))
    found = [distances(block, train).min(dim=1) for _, block in blocks(rows, len(train))]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
