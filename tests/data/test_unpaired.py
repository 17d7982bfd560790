"""Two data sets without pairs: deterministic draws, splits of both, options, and what is refused."""

import numpy as np
import pytest
import torch

from condiff.data import Subset, TensorData, Unpaired, open_data, split, unpaired
from condiff.errors import BadType, BadValue


def numbered(n, offset=0.0, label=False):
    """Row i is (i, i) / 1000 + offset, so that a row says where it is from."""
    x = torch.arange(n).float()[:, None].expand(n, 2) / 1000.0 + offset
    return TensorData(x, {"label": torch.arange(n) % 2} if label else None, name=f"set-{n}")


def test_rows_are_the_targets_with_random_sources():
    data = Unpaired(numbered(30, -0.5), numbered(400, label=True))
    rows = data.batch(range(400))
    assert torch.equal(rows["x"], data.target.batch(range(400))["x"]) and len(data) == 400
    assert torch.equal(rows["cond"]["label"], torch.arange(400) % 2) and data.classes == ("0", "1")
    assert data.kinds == {"label": "label", "source": "endpoint"} and not data.paired
    which = ((rows["cond"]["source"][:, 0] + 0.5) * 1000).round().long()
    counts = torch.bincount(which, minlength=30)
    assert int(counts.min()) > 2 and int(counts.max()) < 35  # uniform: 13.3 +- 3.6 each
    assert float(torch.corrcoef(torch.stack([which.float(), torch.arange(400).float()]))[0, 1]) < 0.15


def test_draws_depend_on_seed_epoch_and_index_only():
    data = Unpaired(numbered(30), numbered(40))
    whole = data.batch(range(40), epoch=3)["cond"]["source"]
    assert torch.equal(data.batch([7, 3], epoch=3)["cond"]["source"], whole[[7, 3]])
    assert not torch.equal(data.batch(range(40), epoch=4)["cond"]["source"], whole)
    assert not torch.equal(Unpaired(numbered(30), numbered(40), seed=1).batch(range(40), 3)["cond"]["source"], whole)


def test_a_split_is_of_both_sets():
    train, test = split(Unpaired(numbered(50), numbered(100), seed=4), 0.2, seed=1)
    assert (len(train), len(test)) == (80, 20) and isinstance(train, Unpaired) and train.seed == 4
    assert (len(train.source), len(test.source)) == (40, 10)
    seen = {float(v) for v in train.batch(range(80))["cond"]["source"][:, 0]}
    held = {float(v) for v in test.batch(range(20))["cond"]["source"][:, 0]}
    assert not seen & held
    assert not Subset(train, [0, 1]).paired


def test_fingerprints_see_both():
    one = Unpaired(numbered(30), numbered(40)).fingerprint()
    assert one == Unpaired(numbered(30), numbered(40)).fingerprint()
    others = [(numbered(31), numbered(40), 0), (numbered(30), numbered(41), 0), (numbered(30), numbered(40), 1)]
    assert len({one, *(Unpaired(a, b, seed=s).fingerprint() for a, b, s in others)}) == 4


def test_arrays_and_folders(tmp_path):
    from PIL import Image

    a, b = (np.random.default_rng(i).uniform(-1, 1, (12, 3)).astype(np.float32) for i in range(2))
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "b.npz", x=b)
    data = open_data("unpaired", source=str(tmp_path / "a.npy"), target=str(tmp_path / "b.npz"), seed=3)
    assert torch.equal(data.batch([5])["x"][0], torch.from_numpy(b[5])) and data.seed == 3
    assert "from a.npy: 12 samples" in data.describe() and "source (endpoint)" in data.describe()
    for folder, value in (("grey", 60), ("light", 200)):
        (tmp_path / folder / "cats").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (10, 10), (value, value, 10 * i)).save(tmp_path / folder / "cats" / f"{i}.png")
    pictures = unpaired(tmp_path / "grey", tmp_path / "light", 8)
    assert pictures.shape == (3, 8, 8) and pictures.classes == ("cats",) and pictures.name == "grey-to-light"
    batch = pictures.batch([0])
    assert float(batch["x"][0, 0, 0, 0]) > 0.5 > 0.0 > float(batch["cond"]["source"][0, 0, 0, 0])
    with pytest.raises(BadValue, match="is for pictures"):
        unpaired(tmp_path / "a.npy", tmp_path / "b.npz", 8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadValue, match="samples of one shape"):
        Unpaired(TensorData(torch.zeros(3, 2)), TensorData(torch.zeros(3, 3)))
    with pytest.raises(BadType, match="source must be a data set"):
        Unpaired(torch.zeros(3, 2), TensorData(torch.zeros(3, 2)))
    with pytest.raises(BadValue, match="a condition named 'source' already"):
        Unpaired(numbered(3), TensorData(torch.zeros(3, 2), {"source": torch.zeros(3)}))
    with pytest.raises(BadValue, match=r"needs source \(--data SOURCE in a terminal\), target \(--data TARGET"):
        open_data("unpaired")
