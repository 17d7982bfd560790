"""Which frames a filter of still frames skips."""

import math

import pytest
import torch

from condiff.errors import BadType, BadValue
from condiff.streaming import SimilarityFilter, similarity

BASE = torch.tensor([1.0, 0.0])


def frame(cosine):
    """A frame of the given similarity with BASE."""
    return torch.tensor([cosine, math.sqrt(1.0 - cosine * cosine)], dtype=torch.float64)


def test_frames_are_skipped_as_often_as_the_formula_says():
    s, count, keep = 0.993, 10_000, SimilarityFilter(0.98, max_skip=10**6, seed=0)
    keep(BASE.double())
    skipped = 0
    for _ in range(count):
        if keep(frame(s)):
            keep._last = BASE.double()  # so that every draw is of the same similarity
        else:
            skipped += 1
    p = (s - 0.98) / 0.02
    assert abs(skipped / count - p) <= 3.0 * math.sqrt(p * (1.0 - p) / count)


def test_frames_at_the_threshold_or_below_are_never_skipped():
    for cosine in (0.979999, 0.5, -1.0):
        keep = SimilarityFilter(seed=1)
        assert keep(BASE.double())
        for _ in range(300):
            assert keep(frame(cosine))
            keep._last = BASE.double()


@pytest.mark.parametrize("max_skip", [0, 3, 10])
def test_of_a_still_picture_one_frame_in_max_skip_and_two_is_worked_on(max_skip):
    keep = SimilarityFilter(max_skip=max_skip)
    kept = [keep(BASE) for _ in range(5 * (max_skip + 2))]
    assert kept == ([True] + [False] * (max_skip + 1)) * 5


def test_the_count_begins_anew_at_every_frame_that_is_worked_on():
    keep, other = SimilarityFilter(max_skip=3), torch.tensor([0.0, 1.0])
    assert [keep(BASE) for _ in range(4)] == [True, False, False, False]
    assert keep(other)  # it changed
    assert [keep(other) for _ in range(5)] == [False, False, False, False, True]


def test_a_threshold_of_1_skips_nothing():
    keep = SimilarityFilter(threshold=1.0)
    assert all(keep(BASE) for _ in range(20))


def test_a_state_goes_on_with_the_same_draws():
    one, other = SimilarityFilter(seed=3), SimilarityFilter(seed=4)
    frames = [frame(0.99) for _ in range(60)]
    for f in frames[:20]:
        one(f)
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert [one(f) for f in frames[20:]] == [other(f) for f in frames[20:]]


def test_similarity():
    assert similarity(BASE, -BASE) == -1.0
    assert similarity(torch.zeros(3), torch.zeros(3)) == 1.0 and similarity(torch.zeros(2), BASE) == 0.0
    with pytest.raises(BadValue, match="have one shape"):
        similarity(BASE, torch.zeros(3))


def test_what_a_filter_refuses():
    with pytest.raises(BadValue, match="cosine, at least -1"):
        SimilarityFilter(threshold=-2.0)
    with pytest.raises(BadValue, match="integer >= 0"):
        SimilarityFilter(max_skip=-1)
    with pytest.raises(BadType, match="floating-point"):
        SimilarityFilter()(torch.zeros(3, dtype=torch.uint8))
