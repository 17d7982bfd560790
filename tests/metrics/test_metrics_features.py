"""Features, the bundled classifier, and the whole table of an evaluation."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from condiff.data import digits, shuffled
from condiff.errors import BadFile, BadValue, NonFinite
from condiff.metrics import (
    Features,
    ImageFeatures,
    Pixels,
    class_accuracy,
    digit_classifier,
    evaluate,
    frechet,
    inception,
)


def rows(split):
    data = digits(split)
    batch = data.batch(range(len(data)))
    return batch["x"], batch["cond"]["label"]


def test_the_bundled_classifier_knows_digits():
    judge = digit_classifier()
    accuracy = judge.heldout_accuracy()
    assert accuracy["svm"] >= 0.99 and accuracy["network"] >= 0.99
    x, y = rows("test")
    probabilities = judge.probabilities(x)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(x), dtype=torch.float64))
    assert class_accuracy(probabilities, y) == accuracy["network"]
    features = judge.features(x)
    assert features.shape == (359, 64) and features.dtype == torch.float64
    assert torch.equal(features[:5], judge.features(x[:5]))  # a row doesn't depend on its batch
    assert class_accuracy(judge.predict(torch.zeros_like(x)), y) < 0.2


def test_the_classifier_refuses_what_it_cannot_judge():
    judge = digit_classifier()
    for x in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 16, 16), torch.zeros(1, 8, 8)):
        with pytest.raises(BadValue, match=r"\(B, 1, 8, 8\)"):
            judge.features(x)
    with pytest.raises(BadValue, match="NaN"):
        judge.predict(torch.full((1, 1, 8, 8), float("nan")))


def test_features_rank_real_blurred_and_noise():
    judge = digit_classifier()
    train, heldout = rows("train")[0], rows("test")[0]
    features = judge.features(heldout)
    floor = frechet(judge.features(train[:400]), features)
    generator = torch.Generator().manual_seed(0)
    worse = [train[:400] + s * torch.randn(400, 1, 8, 8, generator=generator) for s in (0.2, 0.5, 1.5)]
    distances = [frechet(judge.features(x), features) for x in worse]
    assert floor < distances[0] < distances[1] < distances[2]


KEYS = {
    "class_accuracy", "frechet", "frechet_floor", "kernel", "kernel_floor", "energy", "energy_floor",
    "sliced_wasserstein", "sliced_wasserstein_floor", "precision", "recall", "density", "coverage", "coverage_floor",
    "nn_ratio", "memorised_fraction", "memorised_level", "nearer", "samples", "features",
}  # fmt: skip


def test_evaluate_real_digits_as_samples():
    x, y = (v[shuffled(1438)] for v in rows("train"))  # the bundled order is by writer
    heldout = rows("test")[0]
    table = evaluate(x[:300], x[300:], heldout, y[:300], digit_classifier())
    assert set(table) == KEYS and json.loads(json.dumps(table)) == table
    assert table["class_accuracy"] == 1.0 and table["samples"] == 300
    assert table["frechet"] < 2 * table["frechet_floor"] and table["coverage"] > 0.9
    assert 0.8 < table["nn_ratio"] < 1.25 and table["memorised_fraction"] < 0.05
    copies = evaluate(x[:300], x, heldout)
    assert copies["memorised_fraction"] == 1.0 and copies["nn_ratio"] == 0.0 and copies["features"] == "Pixels (64)"
    assert copies == evaluate(x[:300], x, heldout)  # no hidden randomness
    one_class = evaluate(x[y == 3][:100], x[200:], heldout, classifier=digit_classifier())
    assert one_class["frechet"] > 10 * one_class["frechet_floor"] and one_class["coverage"] < 0.3
    assert "class_accuracy" not in one_class


def test_faults_of_evaluate():
    x, y = rows("train")
    heldout = rows("test")[0]
    with pytest.raises(BadValue, match="labels= need a classifier="):
        evaluate(x[:20], x, heldout, y[:20])
    with pytest.raises(BadValue, match="must have one shape"):
        evaluate(torch.zeros(20, 3, 8, 8), x, heldout)
    with pytest.raises(BadValue, match="at least 6 rows"):
        evaluate(x[:5], x, heldout)
    bad = x[:20].clone()
    bad[4] = float("nan")
    with pytest.raises(NonFinite, match=r"samples holds NaN .* row 4"):
        evaluate(bad, x, heldout)
    with pytest.raises(BadValue, match="of one batch"):
        evaluate(x[:20], x, heldout, y[:19], digit_classifier())


def test_class_accuracy():
    labels = torch.tensor([0, 1, 2, 1])
    assert class_accuracy(torch.tensor([0, 1, 1, 1]), labels) == 0.75
    assert class_accuracy(torch.eye(3)[[0, 2, 2, 1]], labels) == 0.75
    for predicted, asked in (
        (torch.eye(2)[[0, 1]], [0, 2]),
        (torch.tensor([0]), [-1]),
        (torch.tensor([], dtype=int), []),
    ):
        with pytest.raises(BadValue):
            class_accuracy(predicted, torch.tensor(asked, dtype=torch.long))


# Networks in files


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x.float()).mean((2, 3))


class Named(Tiny):
    """Takes the argument that NVIDIA's Inception takes."""

    def forward(self, x, return_features: bool = False):
        h = self.conv(x.float()).mean((2, 3))
        return h if return_features else h[:, :1]


def test_features_of_a_torchscript_file(tmp_path):
    for module in (Tiny(), Named()):
        torch.jit.script(module).save(tmp_path / "net.pt")
        x = torch.rand(5, 3, 10, 10) * 2 - 1
        features = inception(tmp_path / "net.pt", size=8)
        assert isinstance(features, Features) and features.features(x).shape == (5, 4)
    byte = inception(tmp_path / "net.pt").features(x)
    expected = module((x * 127.5 + 127.5).round(), True).detach().double()
    torch.testing.assert_close(byte, expected, rtol=1e-5, atol=1e-4)
    assert inception(tmp_path / "net.pt").features(x[:, :1]).shape == (5, 4)  # grey images are repeated


def test_features_of_a_safetensors_file(tmp_path):
    module = Tiny()
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    x = torch.rand(3, 3, 8, 8)
    features = inception(tmp_path / "w.safetensors", Tiny(), input="[0, 1]").features(x)
    torch.testing.assert_close(features, module(x * 0.5 + 0.5).detach().double())
    with pytest.raises(BadFile, match="don't belong to Linear"):
        inception(tmp_path / "w.safetensors", nn.Linear(2, 2))
    with pytest.raises(BadFile, match="need network="):
        inception(tmp_path / "w.safetensors")


def test_files_that_are_refused(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "pickled.pt")
    with pytest.raises(BadFile, match="pickled checkpoints are refused"):
        inception(tmp_path / "pickled.pt")
    with pytest.raises(BadFile, match="no such file"):
        inception(tmp_path / "none.pt")
    with pytest.raises(BadFile, match="don't belong"):
        inception(tmp_path / "pickled.pt", Tiny())


def test_image_features_refuse_other_ranges_and_channels():
    features = ImageFeatures(Tiny())
    with pytest.raises(BadValue, match=r"lie in \[-1, 1\], got 0 to 255"):
        features.features(torch.tensor([0.0, 255.0]).expand(1, 3, 4, 2))
    with pytest.raises(BadValue, match="1 or 3"):
        features.features(torch.zeros(1, 4, 8, 8))
    with pytest.raises(BadValue, match="Did you mean 'uint8'"):
        ImageFeatures(Tiny(), input="uint")
    assert Pixels().features(torch.zeros(2, 3, 4)).shape == (2, 12)
