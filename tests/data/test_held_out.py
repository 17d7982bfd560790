"""What is held out: disjoint, nothing lost, always the same, in proportion, in time; refused with numbers."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from condiff.data import (
    SHARE,
    TensorData,
    Together,
    TokenData,
    Unpaired,
    Windows,
    WindowSpec,
    digits,
    held_count,
    loader,
    split,
    split_indices,
    triplets,
    video,
)
from condiff.data.held_out import split_recordings
from condiff.data.series import Series
from condiff.errors import BadType, BadValue

shares = st.floats(0.001, 0.999)


@given(st.integers(2, 400), shares, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_rows_are_in_one_part_each_and_always_in_the_same(n, share, seed):
    train, held = split_indices(n, share, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(n))
    assert len(held) == min(max(1, round(share * n)), n - 1)
    torch.rand(3)  # the global generator has nothing to do with it
    again = split_indices(n, share, seed)
    assert torch.equal(train, again[0]) and torch.equal(held, again[1])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), shares, st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_classes_stay_represented_and_in_proportion(sizes, share, seed):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    n, k = len(labels), len(sizes)
    if n < k + 1:
        with pytest.raises(
            BadValue, match=f"^too few samples of {k} classes .*: {n}, where 1 to hold out and {k} to train on"
        ):
            split_indices(n, share, seed, labels)
        return
    train, held = split_indices(n, share, seed, labels)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(n))
    assert len(held) == min(max(1, round(share * n)), n - k)
    left, out = (torch.bincount(labels[rows], minlength=k).tolist() for rows in (train, held))
    assert min(left) >= 1  # every class is trained on
    full = [c for c in range(k) if left[c] == 1]  # classes that give all they can
    if not full:
        assert all(abs(out[c] - len(held) * sizes[c] / n) < 1.0 or out[c] == 1 for c in range(k))
    if len(held) >= k and min(sizes) > 1:
        assert min(out) >= 1 or any(len(held) * size // n >= 2 for size in sizes)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=15), shares, st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_recordings_stay_whole(sizes, share, seed):
    spans = torch.tensor([(c, i, i + 2) for c, n in enumerate(sizes) for i in range(n)])
    train, held, chosen = split_recordings(spans, share, seed)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(spans)))
    assert not set(spans[train, 0].tolist()) & set(spans[held, 0].tolist())
    assert 1 <= len(held) <= max(share * len(spans) + 1e-6, min(sizes))  # never more than asked for, if it can be
    assert torch.equal(held, split_recordings(spans, share, seed)[1]) and "recordings" in chosen


@given(st.integers(2, 60), st.integers(1, 6), st.integers(1, 6), shares)
@settings(max_examples=100, deadline=None)
def test_one_recording_is_cut_in_time(n, hop, length, share):
    spans = torch.tensor([(7, i * hop, i * hop + length - 1) for i in range(n)])[torch.randperm(n)]
    try:
        train, held, chosen = split_recordings(spans, share)
    except BadValue as error:
        assert hop < length and f"the {n} samples of one recording overlap" in str(error)
        return
    assert int(spans[train, 2].max()) < int(spans[held, 1].min())
    assert len(held) == held_count(n, share)
    lost = n - len(train) - len(held)  # only those that share frames with what is held out
    assert lost == (0 if hop >= length else min((length - 1) // hop, n - len(held)))
    assert ("left out" in chosen) == bool(lost)


def steps(n, start="2024-01-01"):
    return Series("a", pd.Period(start, freq="h"), "h", torch.arange(1.0, n + 1).double().numpy())


@given(st.integers(1, 120), st.integers(1, 5), st.integers(1, 6), shares)
@settings(max_examples=60, deadline=None)
def test_series_are_held_out_in_time(n, horizon, context, share):
    spec = WindowSpec(freq="h", horizon=horizon, context=context, lags=(2,))
    if n < spec.length + spec.reach:
        return
    data = Windows([steps(n)], spec)
    behind = n - spec.reach - context
    if behind < 2 * horizon:
        with pytest.raises(
            BadValue, match=rf"^too few steps of a .*: {behind}, where {horizon} to hold out and {horizon} "
        ):
            split(data, share)
        return
    train, held = split(data, share)
    seen = int(train.place(torch.arange(len(train)))[1].max()) + spec.length
    asked = int(held.place(torch.arange(len(held)))[1].min()) + context
    assert seen == asked  # nothing between what is trained on and what is forecast, and nothing in both
    assert int(held.place(torch.arange(len(held)))[1].max()) + spec.length == n
    assert n - asked == held_count(behind, share, least=horizon, stay=horizon)


@given(st.integers(2, 300), st.integers(1, 9), shares)
@settings(max_examples=60, deadline=None)
def test_text_is_held_out_at_its_end(tokens, length, share):
    if tokens < length:
        return
    data = TokenData(torch.arange(tokens), length, tokens, shift=True)
    if tokens // length < 2:
        with pytest.raises(
            BadValue, match=rf"^too few windows of {length} tokens \(of {tokens}\) .*: 1, where 1 to hold out and 1 "
        ):
            split(data, share)
        return
    train, held = split(data, share)
    assert torch.equal(torch.cat([train.ids, held.ids]), data.ids)
    assert len(held) == held_count(tokens // length, share)


def pictures(folder, sizes):
    for clip, count in sizes.items():
        (folder / clip).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4), 10 * i).save(folder / clip / f"{i}.png")
    return folder


@pytest.mark.parametrize("count", range(1, 6))
def test_one_to_five_recordings(tmp_path, count):
    data = video(pictures(tmp_path, {f"c{i}": 6 for i in range(count)}), given=1, frames=2)
    train, held = split(data)
    assert (len(train), len(held)) == ((2, 1) if count == 1 else (3 * (count - 1), 3))
    assert held.chosen == (
        "the end of the recording" if count == 1 else f"1 of {count} recordings, whole and at random"
    )


def test_a_short_recording_is_held_out_beside_a_long_one(tmp_path):
    data = video(pictures(tmp_path, {"long": 20, "short": 4}), given=1, frames=2)
    assert [len(part) for part in split(data)] == [10, 2]


def test_triplets_of_one_clip_are_never_in_both_parts(tmp_path):
    several = triplets(pictures(tmp_path / "several", {"a": 5, "b": 4, "c": 12}))
    for part, clips in zip(split(several, 0.4), ({"c"}, {"a", "b"}), strict=True):
        assert {several.views["x"][i].name.split("/")[0] for i in part.index.tolist()} == clips
    one = triplets(pictures(tmp_path / "one", {"a": 12}))
    train, held = split(one)
    assert (len(one), len(train), len(held)) == (10, 7, 1)  # two share frames with the last one


def test_the_smallest_sets():
    for n, parts in ((2, [1, 1]), (3, [2, 1]), (5, [4, 1]), (14, [13, 1]), (25, [23, 2])):
        assert [len(part) for part in split(TensorData(torch.zeros(n, 2), range="keep"))] == parts
    with pytest.raises(
        BadValue, match=r"^too few samples to hold some out: 1, where 1 to hold out and 1 to train on .*--held-out 0"
    ):
        split(TensorData(torch.zeros(1, 2), range="keep"))
    one_each = TensorData(torch.zeros(3, 2), {"label": torch.arange(3)}, range="keep")
    with pytest.raises(BadValue, match=r"^too few samples of 3 classes .*: 3, where 1 to hold out and 3 to train on"):
        split(one_each)


def test_of_two_sets_and_of_several_variables():
    rows = lambda n: TensorData(torch.arange(n)[:, None].float(), range="keep")
    train, held = split(Unpaired(rows(1 + 4), rows(30)))
    assert (len(train.source), len(held.source), len(held)) == (4, 1, 3)
    train, held = split(Together(digits(), ["label"]))
    assert torch.equal(held.index, split(digits())[1].index)


def test_shares_are_checked():
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(BadValue, match="a share in"):
            held_count(100, share)
    with pytest.raises(BadType, match="a share in"):
        held_count(100, "half")
    assert held_count(100) == 100 * SHARE


def test_readers_and_processes_see_the_same_parts():
    data = TensorData(torch.arange(40.0)[:, None], {"label": torch.arange(40) % 3}, range="keep")
    train, _ = split(data)
    one, two = ([b["x"] for b in loader(train, range(len(train)), 6, workers=w)] for w in (0, 2))
    assert torch.equal(torch.cat(one), torch.cat(two))
    program = (
        "from condiff.data import *; import torch; print(split_indices(97, 0.2, 3, torch.arange(97) % 7)[1].tolist())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(split_indices(97, 0.2, 3, torch.arange(97) % 7)[1].tolist())
