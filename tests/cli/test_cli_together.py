"""``condiff train --joint`` and ``condiff sample --known``: what is generated together, in every direction."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from terminal import run

from condiff.cli.main import main
from condiff.data import TensorData, Together, digits, of_together, split, text
from condiff.errors import BadValue, Incompatible
from condiff.model_files import load_model
from condiff.multimodal import Label, MultiModal

TINY = ["--steps", "2", "--batch", "8", "--set", "sampler.steps=2"]
TINY += [f"--set=network.network.{word}" for word in ("width=16", "depth=1", "heads=2")]


def trained_on(folder, *words):
    assert main([str(w) for w in ("train", *words, *TINY, "--out", folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return trained_on(tmp_path_factory.mktemp("together") / "run", "digits", "--joint", "label")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of class directories, real files."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name in ("bee", "wasp"):
        (root / "data" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Pictures.fromarray(pixels).save(root / "data" / name / f"{i}.png")
    words = ("images", "--data", root / "data", "--size", "8", "--joint", "label")
    return root / "data", trained_on(root / "run", *words)


def test_a_run_says_what_it_generates(numbers):
    model = load_model(numbers)
    assert isinstance(model, MultiModal)
    assert model.modalities["label"] == Label(10)
    assert model.told
    metrics = json.loads((numbers / "metrics.json").read_text())
    assert {"frechet", "class_accuracy"} <= set(metrics)
    assert metrics["nfe"] == 3  # two steps, and what is decoded at the first level
    assert (numbers / "samples.png").is_file()


def test_samples_are_drawn_jointly_and_from_either_side(capsys, numbers, tmp_path):
    out = tmp_path / "both.npz"
    run(capsys, "sample", numbers, "--num", 5, "--out", out)
    with np.load(out) as both:
        assert both["image"].shape == (5, 1, 8, 8)
        assert both["label"].shape == (5,)
    run(capsys, "sample", numbers, "--num", 3, "--known", "label=7", "--out", tmp_path / "sevens.npz")
    with np.load(tmp_path / "sevens.npz") as sevens:
        assert sevens["label"].tolist() == [7, 7, 7]
    pixels = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
    Pictures.fromarray(pixels).save(tmp_path / "pic.png")
    said = run(
        capsys, "sample", numbers, "--known", f"image={tmp_path / 'pic.png'}", "--out", tmp_path / "s.npz", "--json"
    )
    assert json.loads(said.out)["num"] == 1
    with np.load(tmp_path / "s.npz") as seen:
        np.testing.assert_allclose(seen["image"][0, 0], pixels / 127.5 - 1.0, atol=1e-6)
        assert 0 <= int(seen["label"][0]) < 10


def test_a_sample_depends_on_its_own_seed(capsys, numbers, tmp_path):
    for name, words in {"a": ("--seed", 3, "--num", 2), "b": ("--seed", 4, "--num", 1)}.items():
        run(capsys, "sample", numbers, *words, "--batch", 1, "--out", tmp_path / f"{name}.npz")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["image"][1:], b["image"])


def test_class_directories_are_generated_with_their_pictures(capsys, pictures, tmp_path):
    data, folder = pictures
    run(capsys, "sample", folder, "--num", 2, "--known", "label=wasp", "--out", tmp_path / "made")
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["00000-wasp.png", "00001-wasp.png"]
    run(capsys, "sample", folder, "--known", f"image={data / 'bee'}", "--out", tmp_path / "seen.npz")
    with np.load(tmp_path / "seen.npz") as seen:
        assert seen["image"].shape == (20, 3, 8, 8)


def test_a_run_is_used_where_its_data_is_not(capsys, pictures, tmp_path):
    data, folder = pictures
    shutil.move(data, data.with_name("gone"))
    try:
        run(capsys, "sample", folder, "--num", 1, "--known", "label=bee", "--out", tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as made:
            assert made["label"].tolist() == [0]
    finally:
        shutil.move(data.with_name("gone"), data)


def test_guidance_by_what_is_known(capsys, numbers, tmp_path):
    run(capsys, "sample", numbers, "--num", 1, "--known", "label=7", "--guidance", 2, "--out", tmp_path / "x.npz")
    run(capsys, "evaluate", numbers, "--json")


def test_features_in_an_archive_are_generated_beside(capsys, tmp_path):
    """Joint image and representation: a vector of features for each picture."""
    rng = np.random.default_rng(0)
    x, features = rng.uniform(-1, 1, (40, 1, 8, 8)), rng.normal(3.0, 2.0, (40, 12))
    np.savez(tmp_path / "d.npz", x=x.astype(np.float32), clip=features.astype(np.float32))
    words = ("arrays", "--data", tmp_path / "d.npz", "--option", 'cond=["clip"]', "--joint", "clip")
    folder = trained_on(tmp_path / "run", *words)
    model = load_model(folder)
    assert model.modalities["clip"].std == pytest.approx(features.std(), rel=0.1)
    np.save(tmp_path / "one.npy", features[:1].astype(np.float32))
    run(capsys, "sample", folder, "--num", 2, "--known", f"clip={tmp_path / 'one.npy'}", "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as made:
        np.testing.assert_array_equal(made["clip"], np.repeat(features[:1].astype(np.float32), 2, 0))


REFUSED = [
    (("--known", "lable=3"), "label"),
    (("--known", "label=eleven"), "class"),
    (("--known", "label"), "NAME=VALUE, such as"),
    (("--label", "3"), "--known label=CLASS"),
    (("--known", "label=3", "--out", "x.gif"), ".png"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_nonsense_is_refused(capsys, numbers, words, message):
    assert message in run(capsys, "sample", numbers, *words, code=2).err


def test_all_known_is_refused(capsys, numbers, tmp_path):
    Pictures.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "pic.png")
    words = ("--known", f"image={tmp_path / 'pic.png'}", "--known", "label=3")
    assert "nothing to sample" in run(capsys, "sample", numbers, *words, code=2).err


def test_methods_and_data_that_do_not_fit_are_refused(capsys, tmp_path):
    out = ("--out", tmp_path / "run", "--steps", 1)
    said = run(capsys, "train", "digits", "--method", "multi-task-diffusion", *out, code=2).err
    assert "--joint" in said
    said = run(capsys, "train", "digits", "--joint", "label", "--method", "edm", *out, code=2).err
    assert "error" in said
    assert "label" in run(capsys, "train", "digits", "--joint", "lable", *out, code=2).err


def test_runs_of_one_thing_know_no_parts(capsys, tmp_path):
    folder = tmp_path / "plain"
    small = ["--set=network.width=16", "--set=network.depth=1", "--set=network.heads=2", "--set=sampler.steps=2"]
    assert main(["train", "digits", "--steps", "1", "--batch", "4", *small, "--out", str(folder)]) == 0
    capsys.readouterr()
    assert "--known" in run(capsys, "sample", folder, "--known", "label=3", code=2).err


# The data


def test_rows_hold_everything_and_parts_stay_what_they_are():
    data = Together(digits(), ["label"])
    rows = data.batch([3, 4])
    assert rows["cond"] == {}
    assert torch.equal(rows["x"]["label"], digits().batch([3, 4])["cond"]["label"])
    train, held = split(data, 0.1)
    assert of_together(train) is data
    assert len(train) + len(held) == len(data)
    share = torch.bincount(held.batch(range(len(held)))["x"]["label"]) / len(held)
    assert float(share.min()) > 0.07  # stratified by class
    assert of_together(digits()) is None
    assert "generated together: image, label" in data.describe()


def test_data_without_parts_is_refused(tmp_path):
    with pytest.raises(BadValue, match="no conditions"):
        Together(TensorData(torch.zeros(4, 2), range="keep"))
    with pytest.raises(BadValue, match="label"):
        Together(digits(), ["lable"])
    (tmp_path / "t.txt").write_text("once upon a time " * 40)
    with pytest.raises(Incompatible, match="tokens"):
        Together(text(tmp_path / "t.txt", length=8), [])
