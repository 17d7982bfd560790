"""Which of N numbered noise levels are looked at: evenly spaced, without chance, in stages.

Index i is the time ``(i + 1) / N``, as in a table (:mod:`condiff.process.table`); processes without one are cut into N.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from condiff.errors import BadValue


def level_indices(levels: int, count: int) -> list[int]:
    """``count`` of ``levels`` indices: ``start, start + h, ...`` with ``h = levels // count``, ``start = h // 2``.

    Raises:
        BadValue: more indices than levels, or none.
    """
    if not 1 <= count <= levels:
        raise BadValue(f"{count} noise levels were asked for of {levels}: at least one, and no more than there are")
    stride = levels // count
    return list(range(stride // 2, levels, stride))[:count]


def stage_indices(levels: int, counts: Sequence[int]) -> list[list[int]]:
    """The indices that are new in each stage (Li 2023): stage s spreads its count evenly over those of the last stage.

    Grids of successive stages needn't be nested, so that a candidate may have been seen at more levels than its stage
    counts.

    Raises:
        BadValue: counts that don't increase, or more than there are levels.
    """
    if not counts or any(a >= b for a, b in itertools.pairwise(counts)):
        raise BadValue(f"the numbers of noise levels of the stages must increase, got {list(counts)}")
    full, seen, out = level_indices(levels, counts[-1]), set(), []
    for count in counts:
        if count < 1:
            raise BadValue(f"a stage needs at least one noise level, got {count}")
        stride = len(full) // count
        chosen = full[stride // 2 :: stride][:count]
        out.append([i for i in chosen if i not in seen])
        seen.update(chosen)
    return out
