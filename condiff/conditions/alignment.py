"""How the tokens of one text belong to those of another, as matrices that maps are mixed by.

Both give ``(M, heard)``, M (L, L) and heard (L,): the j-th token of the target takes ``heard_j (A M)_j`` of the
source's attention maps A, and ``1 - heard_j`` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condiff.errors import BadValue


def common_subsequence(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """For each token of the target the place of its partner in a longest common subsequence, -1 where it has none.

    One of them, where several are equally long. It is what a sequence alignment with a score of 1 for a match, 0 for a
    gap and less for a mismatch finds (Hertz 2022, refinement).
    """
    n, m = len(source), len(target)
    longest = [[0] * (m + 1) for _ in range(n + 1)]  # of what is left from (i, j) on
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            match = source[i] == target[j]
            longest[i][j] = 1 + longest[i + 1][j + 1] if match else max(longest[i + 1][j], longest[i][j + 1])
    partners, i, j = [-1] * m, 0, 0
    while i < n and j < m:
        if source[i] == target[j]:
            partners[j], i, j = i, i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return partners


def refined(source: Sequence[int], target: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
    """Tokens that both have, in order, are taken from the source; new ones attend by themselves (refinement).

    Args:
        source, target: ids with their special tokens, without padding. The k-th padding token of the target belongs to
            the k-th of the source, or its last.
        length: L, with padding.
    """
    partners = common_subsequence(source, target) + _padding(len(target), len(source), length)
    matrix, heard = torch.zeros(length, length), torch.zeros(length)
    for j, i in enumerate(partners):
        if i >= 0:
            matrix[i, j] = heard[j] = 1.0
    return matrix, heard


def replaced(
    source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], ends: tuple[int, int], length: int
) -> tuple[Tensor, Tensor]:
    """The n-th word of the target attends where the n-th of the source does (replacement).

    A word with as many tokens takes them one by one; otherwise each token of the source's word is spread evenly over
    those of the target's. The rows of M sum to one, and so do those of ``A M``.

    Args:
        source, target: the places of the tokens of each word; special tokens are words too.
        ends: tokens of both, without padding.
        length: L, with padding.

    Raises:
        BadValue: other numbers of words, or words without tokens.
    """
    if not all((*source, *target)):
        raise BadValue("a word without tokens can't be replaced, nor replace one")
    if len(source) != len(target):
        raise BadValue(f"{len(source)} words can't be replaced by {len(target)} word for word: refine them")
    matrix = torch.zeros(length, length)
    for ours, theirs in zip(source, target, strict=True):
        if len(ours) == len(theirs):
            matrix[list(ours), list(theirs)] = 1.0
        else:
            matrix[torch.tensor(list(ours))[:, None], torch.tensor(list(theirs))] = 1.0 / len(theirs)
    for i, j in enumerate(_padding(ends[0], ends[1], length), start=ends[0]):
        matrix[i, j] = 1.0
    return matrix, torch.ones(length)


def _padding(here: int, there: int, length: int) -> list[int]:
    """For each padding token of one text the place of the other's: the k-th, or the last."""
    return [min(there + k, length - 1) for k in range(length - here)]
