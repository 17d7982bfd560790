"""What is held out of training: one rule for every kind of data.

Data come in *units* that can't be told apart fairly: rows, the steps of a series, windows of a text, recordings. Held
out is a share of them, at least one (of a series one horizon), and at least one stays in training. Of several
recordings it is whole ones; of one recording, of a text and of each series it is the end; of all else it is rows at
random, of each class in proportion to its size. Which ones is a function of their number, the share and the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue

SHARE = 0.1
TIP = "give more data, others to judge by (--held-out PATH), or hold nothing out (--held-out 0)"


def check_share(share: float) -> None:
    """
    Raises:
        BadValue: a share outside (0, 1).
    """
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise BadType(f"held_out is a share in (0, 1), got {share!r}")
    if not 0.0 < share < 1.0:
        raise BadValue(f"held_out is a share in (0, 1), got {share}")


def held_count(units: int, share: float = SHARE, *, least: int = 1, stay: int = 1, what: str = "samples") -> int:
    """How many of some units are held out: the share, at least ``least``, so that ``stay`` or more are trained on.

    Raises:
        BadValue: a share outside (0, 1), fewer units than ``least + stay``.
    """
    check_share(share)
    if units < least + stay:
        raise BadValue(
            f"too few {what} to hold some out: {units}, where {least} to hold out and {stay} to train on are needed; "
            + TIP
        )
    return min(max(least, round(share * units)), units - stay)


def split_indices(n: int, held_out: float, seed: int = 0, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sorted indices (training, held out) of ``n`` rows; with labels, of each class in proportion to its size.

    Args:
        held_out: share in (0, 1), at least one row. Every class stays in training, and is held out too as far as the
            number of rows goes, those that are owed most first.
        labels: (n,) integers.

    Raises:
        BadValue: a share outside (0, 1), too few rows.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.arange(n)]
    if labels is not None:
        groups = [torch.nonzero(labels == c).flatten() for c in labels.unique().tolist()]
    spare = max(1, len(groups)) if labels is not None else 1
    what = f"samples of {len(groups)} classes" if labels is not None else "samples"
    counts = _in_proportion(held_count(n, held_out, stay=spare, what=what), [len(g) for g in groups])
    held = torch.cat([g[torch.randperm(len(g), generator=generator)][:k] for g, k in zip(groups, counts, strict=True)])
    return _others(n, held), held.sort().values


def _in_proportion(total: int, sizes: list[int]) -> list[int]:
    """Parts of the total in proportion to the sizes, rounded by largest remainders, each below its size; those without
    any come first."""
    n = sum(sizes)
    parts = [min(total * size // n, size - 1) for size in sizes]
    while (left := total - sum(parts)) > 0:
        owed = [(parts[i] == 0, total * size - parts[i] * n, -i) for i, size in enumerate(sizes) if parts[i] < size - 1]
        for _, _, i in sorted(owed, reverse=True)[:left]:
            parts[-i] += 1
    return parts


def split_recordings(spans: Tensor, held_out: float, seed: int = 0) -> tuple[Tensor, Tensor, str]:
    """Sorted indices (training, held out) of rows that are parts of recordings, and how they were chosen.

    Whole recordings, at random, while the share has room for them, the shortest one where it has room for none. Of one
    recording the end, and what overlaps with it is in neither part.

    Args:
        spans: (n, 3), for each row its recording, its first and its last frame there.

    Raises:
        BadValue: a share outside (0, 1), one recording whose rows overlap too much.
    """
    check_share(held_out)
    names, which, sizes = spans[:, 0].unique(return_inverse=True, return_counts=True)
    if len(names) == 1:
        return _end_of_one(spans, held_out)
    room, chosen = max(held_out * len(spans) + 1e-9, int(sizes.min())), []
    for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        if int(sizes[i]) <= room:
            room -= int(sizes[i])
            chosen.append(i)
    held = torch.nonzero(torch.isin(which, torch.tensor(chosen))).flatten()
    return _others(len(spans), held), held, f"{len(chosen)} of {len(names)} recordings, whole and at random"


def _end_of_one(spans: Tensor, held_out: float) -> tuple[Tensor, Tensor, str]:
    n = len(spans)
    count = held_count(n, held_out, what="samples of one recording")
    order = spans[:, 1].argsort(stable=True)
    begins = int(spans[order[n - count], 1])
    held = torch.nonzero(spans[:, 1] >= begins).flatten()
    train = torch.nonzero(spans[:, 2] < begins).flatten()
    if len(train) == 0:
        raise BadValue(
            f"the {n} samples of one recording overlap: none ends before the last {len(held)}, held out; {TIP}"
        )
    lost = n - len(train) - len(held)
    return train, held, "the end of the recording" + (f"; {lost} that overlap with it are left out" if lost else "")


def _others(n: int, rows: Tensor) -> Tensor:
    """The rows of ``n`` that aren't among some."""
    mine = torch.ones(n, dtype=torch.bool)
    mine[rows] = False
    return torch.nonzero(mine).flatten()
