"""Data sets in memory: ranges, faults, splits, statistics, and what augmentation may depend on."""

import math

import pytest
import torch

from condiff.data import (
    Statistics,
    TensorData,
    digits,
    loader,
    shuffled,
    split,
    split_indices,
    statistics,
)
from condiff.data.ranges import to_model_range
from condiff.data.seeded import uniform
from condiff.errors import BadType, BadValue, NonFinite


def test_digits_are_the_real_ones_split_without_overlap_by_class():
    train, test, everything = digits("train"), digits("test"), digits("all")
    assert (len(train), len(test), len(everything)) == (1438, 359, 1797)
    assert train.shape == (1, 8, 8) and train.kinds == {"label": "label"} and train.classes == tuple("0123456789")
    assert train.value_range == (-1.0, 1.0)
    fraction = torch.bincount(test.labels) / torch.bincount(everything.labels)
    assert (fraction - 0.2).abs().max() < 0.005
    rows = {tuple(r.flatten().tolist()) for r in train.batch(range(len(train)))["x"]}
    assert not any(tuple(r.flatten().tolist()) in rows for r in test.batch(range(len(test)))["x"])
    assert digits("train").fingerprint() == train.fingerprint() != test.fingerprint()
    assert digits("train", seed=1).fingerprint() != train.fingerprint()
    with pytest.raises(BadValue, match="Did you mean 'train'"):
        digits("trian")


def test_rows_and_batches_agree():
    data = digits("test")
    batch = data.batch([5, 2, 5])
    assert batch["x"].shape == (3, 1, 8, 8) and batch["x"].dtype == torch.float32
    assert torch.equal(batch["x"][0], batch["x"][2])
    assert torch.equal(data[2]["x"], batch["x"][1]) and data[2]["cond"]["label"] == batch["cond"]["label"][1]
    assert torch.equal(data[-1]["x"], data[len(data) - 1]["x"])
    assert data.batch([])["x"].shape == (0, 1, 8, 8)
    assert len(list(data)) == len(data)  # iteration ends


@pytest.mark.parametrize("indices", [[359], [-1], torch.tensor([0.5]), torch.tensor([[0]]), torch.tensor([True])])
def test_bad_indices_are_refused(indices):
    with pytest.raises(BadValue):
        digits("test").batch(indices)


def test_ranges():
    bytes_ = torch.tensor([[0, 255], [128, 1]], dtype=torch.uint8)
    data = TensorData(bytes_)
    torch.testing.assert_close(data.batch([0])["x"], torch.tensor([[-1.0, 1.0]]))
    torch.testing.assert_close(data.affine.inverse(data.batch([1])["x"]), torch.tensor([[128.0, 1.0]]))
    assert TensorData(torch.tensor([[True, False]])).batch([0])["x"].tolist() == [[1.0, -1.0]]
    celsius = TensorData(torch.tensor([[10.0], [30.0]]), range=(-10.0, 40.0))
    torch.testing.assert_close(celsius.batch([0, 1])["x"], torch.tensor([[-0.2], [0.6]]))
    standard = TensorData(torch.tensor([[1.0], [3.0], [5.0]]), range="standardise").batch([0, 1, 2])["x"]
    torch.testing.assert_close(standard.mean(), torch.tensor(0.0))
    torch.testing.assert_close(standard.square().mean(), torch.tensor(1.0))
    tokens = TensorData(torch.tensor([[3, 700]]), range="keep").batch([0])["x"]
    assert tokens.dtype == torch.int64 and tokens.tolist() == [[3, 700]]
    assert TensorData(torch.tensor([[-1.0, 1.0]], dtype=torch.float64)).batch([0])["x"].dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "range", "error", "match"),
    [
        (torch.tensor([[0.0, 255.0]]), None, BadValue, r"range=\(0, 255\)"),
        (torch.tensor([[3, 4]]), None, BadType, "range='keep'"),
        (torch.tensor([[0.0], [2.0]]), (0.0, 1.0), BadValue, "outside the declared range"),
        (torch.tensor([[0.0]]), (1.0, 1.0), BadValue, "outside|low < high"),
        (torch.tensor([[0.0]]), "standardize", BadValue, "Did you mean 'standardise'"),
        (torch.ones(3, 2), "standardise", BadValue, "constant"),
        (torch.ones(1, dtype=torch.complex64), None, BadType, "complex"),
        (torch.tensor([[0.0, 0.0], [0.0, math.nan]]), None, NonFinite, r"1 of 2 rows, first at index \(1, 1\)"),
        (torch.tensor([[math.inf]]), "keep", NonFinite, "index"),
    ],
)
def test_values_that_need_a_word_are_refused(x, range, error, match):
    with pytest.raises(error, match=match):
        to_model_range(x, range)


def test_faults_of_conditions_are_named():
    x = torch.zeros(3, 2)
    with pytest.raises(BadValue, match=r"label 7 of row 1 does not lie in \[0, 5\)"):
        TensorData(x, {"label": torch.tensor([0, 7, -1])}, classes=list("abcde"))
    with pytest.raises(BadValue, match="label -1 of row 2"):
        TensorData(x, {"label": torch.tensor([0, 1, -1])})
    with pytest.raises(BadValue, match=r"'age' .* must have 3 rows"):
        TensorData(x, {"age": torch.zeros(2)})
    with pytest.raises(NonFinite, match="'age'"):
        TensorData(x, {"age": torch.tensor([0.0, math.nan, 1.0])})
    with pytest.raises(BadValue, match="kinds="):
        TensorData(x, {"m": torch.zeros(3, 2, dtype=torch.bool)})
    with pytest.raises(BadValue, match="no samples"):
        TensorData(torch.zeros(0, 2))
    with pytest.raises(BadType, match="must be a tensor"):
        TensorData([[0.0]])


def test_kinds_follow_from_shapes():
    n = 2
    cond = {
        "label": torch.tensor([0, 1]),
        "age": torch.rand(n),
        "pose": torch.rand(n, 3),
        "text": torch.zeros(n, 5, dtype=torch.long),
        "states": torch.rand(n, 5, 8),
        "edge": torch.rand(n, 1, 4, 4),
    }
    kinds = dict(label="label", age="scalar", pose="vector", text="tokens", states="tokens", edge="map")
    data = TensorData(torch.zeros(n, 1, 4, 4), cond)
    assert data.kinds == kinds and data.classes == ("0", "1")
    assert "conditions: age (scalar), pose (vector)" in data.describe() and "0 (1), 1 (1)" in data.describe()


def test_flips_depend_on_seed_epoch_and_index_only():
    x = torch.rand(64, 1, 2, 3)
    data = TensorData(x, flip=True, seed=3)
    whole = data.batch(range(64), epoch=2)["x"]
    pieces = torch.cat([data.batch([i], epoch=2)["x"] for i in range(64)])
    assert torch.equal(whole, pieces)
    flipped = (whole != x).flatten(1).any(dim=1)
    assert torch.equal(whole[flipped], x.flip(-1)[flipped]) and 15 < int(flipped.sum()) < 49
    assert not torch.equal(whole, data.batch(range(64), epoch=3)["x"])
    assert not torch.equal(whole, TensorData(x, flip=True, seed=4).batch(range(64), epoch=2)["x"])


def test_seeded_uniforms_are_uniform_and_uncorrelated():
    u = uniform(5, 1, torch.arange(20000), 3)
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean(dim=0) - 0.5).abs().max() < 4 * (1 / 12 / 20000) ** 0.5
    others = [uniform(5, 2, torch.arange(20000)), uniform(6, 1, torch.arange(20000)), u[1:, :1], u[:, 1:2]]
    for other in others:
        n = len(other)
        corr = torch.corrcoef(torch.stack([u[:n, 0], other[:, 0]]))[0, 1]
        assert abs(float(corr)) < 4 / n**0.5
    # A value that must stay: runs are resumed with it.
    assert uniform(0, 0, torch.tensor([0])).item() == pytest.approx(
        uniform(0, 0, torch.tensor([9, 0]))[1].item(), abs=0
    )


def test_splits_are_disjoint_stratified_and_repeatable():
    y = torch.tensor([0] * 50 + [1] * 10 + [2])
    train, test = split_indices(61, 0.2, seed=1, labels=y)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(61))
    assert torch.bincount(y[test], minlength=3).tolist() == [10, 2, 0]
    assert torch.equal(test, split_indices(61, 0.2, seed=1, labels=y)[1])
    assert not torch.equal(test, split_indices(61, 0.2, seed=2, labels=y)[1])
    assert len(split_indices(61, 0.001)[1]) == 1
    for fraction in (0.0, 1.0, True):
        with pytest.raises((BadValue, BadType), match="a share in"):
            split_indices(61, fraction)
    data = digits("all")
    a, b = split(data, 0.25)
    assert len(a) + len(b) == len(data) and a.classes == data.classes and a.fingerprint() != b.fingerprint()
    assert torch.equal(b.batch([0, 1])["x"], data.batch(b.index[:2])["x"])
    assert torch.equal(b.labels, data.labels[b.index])


def test_subset_keeps_the_augmentation_of_its_rows():
    data = TensorData(torch.rand(40, 1, 2, 2), flip=True)
    part, _ = split(data, 0.5)
    assert torch.equal(part.batch(range(len(part)), 4)["x"], data.batch(part.index, 4)["x"])


@pytest.mark.parametrize("per", ["channel", "element", "all"])
def test_statistics_are_those_of_all_rows(per):
    x = 1e4 + torch.rand(100, 3, 4, dtype=torch.float64)
    dims = {"channel": (0, 2), "element": (0,), "all": (0, 1, 2)}[per]
    a, b = Statistics(per), Statistics(per)
    for rows in x[:60].split(7):
        a.update(rows)
    a.merge(b.update(x[60:]))
    torch.testing.assert_close(a.mean, x.mean(dims), rtol=1e-13, atol=0)
    torch.testing.assert_close(a.var, x.var(dims, correction=0), rtol=1e-8, atol=0)
    with pytest.raises(BadValue, match="update"):
        _ = Statistics(per).var


def test_statistics_of_data():
    data = digits("test")
    x = data.batch(range(len(data)))["x"].double()
    torch.testing.assert_close(statistics(data, batch=50).std, x.std((0, 2, 3), correction=0))


def test_loader_is_the_same_whatever_the_workers_and_resumes_in_the_middle():
    data = TensorData(torch.rand(30, 1, 2, 3), {"label": torch.arange(30)}, flip=True)
    order = shuffled(30, seed=7, epoch=2)
    assert sorted(order.tolist()) == list(range(30)) and not torch.equal(order, shuffled(30, 7, 3))
    state = torch.get_rng_state()
    one = list(loader(data, order, 8, epoch=2))
    two = list(loader(data, order, 8, workers=2, epoch=2))
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    assert [len(b["x"]) for b in one] == [8, 8, 8, 6] == [len(b["x"]) for b in two]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["cond"]["label"], b["cond"]["label"])
    rest = list(loader(data, order[16:], 8, epoch=2))
    assert torch.equal(rest[0]["x"], one[2]["x"])
    assert len(list(loader(data, order, 8, drop_last=True))) == 3
    with pytest.raises(BadValue, match="batch >= 1"):
        loader(data, order, 0)
