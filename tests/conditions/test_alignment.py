"""Alignment of two texts' tokens against brute force."""

import itertools
import random

import pytest
import torch

from condiff.conditions.alignment import common_subsequence, refined, replaced
from condiff.errors import BadValue


def longest(a, b):
    """By trying every choice of places."""
    for n in range(min(len(a), len(b)), 0, -1):
        picks = {tuple(a[i] for i in chosen) for chosen in itertools.combinations(range(len(a)), n)}
        if any(tuple(b[i] for i in chosen) in picks for chosen in itertools.combinations(range(len(b)), n)):
            return n
    return 0


def test_partners_are_a_longest_common_subsequence():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.randrange(4) for _ in range(rng.randrange(8))] for _ in range(2))
        partners = common_subsequence(a, b)
        matched = [(i, j) for j, i in enumerate(partners) if i >= 0]
        assert len(partners) == len(b) and len(matched) == longest(a, b)
        assert all(a[i] == b[j] for i, j in matched)
        assert all(i < k for (i, _), (k, _) in itertools.pairwise(matched))


def test_refinement_takes_what_both_have_and_leaves_what_is_new():
    """0 and 9 begin and end; 5 is new, and the padding follows the end, the k-th to the k-th."""
    matrix, heard = refined([0, 1, 2, 9], [0, 1, 5, 2, 9], 8)
    assert heard.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert matrix.argmax(0)[heard > 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert matrix.sum(0).tolist() == heard.tolist()
    longer, heard = refined([0, 1, 5, 2, 9], [0, 1, 2, 9], 8)
    assert heard.all() and longer.argmax(0).tolist() == [0, 1, 3, 4, 5, 6, 7, 7]


def spread(source, target, length):
    """Word for word, one entry at a time."""
    matrix = torch.zeros(length, length)
    for ours, theirs in zip(source, target, strict=True):
        for n, i in enumerate(ours):
            for m, j in enumerate(theirs):
                matrix[i, j] = float(n == m) if len(ours) == len(theirs) else 1.0 / len(theirs)
    ends = [max(i for word in text for i in word) + 1 for text in (source, target)]
    for k in range(length - ends[0]):
        matrix[ends[0] + k, min(ends[1] + k, length - 1)] = 1.0
    return matrix


def test_replacement_against_one_entry_at_a_time():
    rng = random.Random(1)
    for _ in range(50):
        texts = []
        words = rng.randrange(1, 5)
        for _ in range(2):
            counts = [rng.randrange(1, 4) for _ in range(words)]
            starts = [sum(counts[:i]) for i in range(words)]
            texts.append([list(range(s, s + n)) for s, n in zip(starts, counts, strict=True)])
        ends = tuple(sum(map(len, text)) for text in texts)
        matrix, heard = replaced(*texts, ends, 13)
        torch.testing.assert_close(matrix, spread(*texts, 13))
        torch.testing.assert_close(matrix.sum(1), torch.ones(13))
        assert heard.all()


def test_the_same_text_is_the_identity():
    text = [3, 1, 4, 1, 5]
    for matrix, heard in (refined(text, text, 7), replaced([[0], [1, 2], [3, 4]], [[0], [1, 2], [3, 4]], (5, 5), 7)):
        assert torch.equal(matrix, torch.eye(7)) and heard.all()


def test_words_that_cannot_be_replaced_are_refused():
    with pytest.raises(BadValue, match="2 words can't be replaced by 1"):
        replaced([[0], [1]], [[0]], (2, 1), 4)
    with pytest.raises(BadValue, match="without tokens"):
        replaced([[0], [1]], [[0], []], (2, 1), 4)
