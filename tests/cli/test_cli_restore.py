"""``condiff restore``: pictures of any size in, pictures of the same size out; RDDM from the command line."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import SMALL, run

from condiff.cli.main import main
from condiff.errors import Incompatible
from condiff.methods.restoring import open_restorer
from condiff.model_files import load_model
from condiff.process import Ramps, Residual

TINY = [*SMALL, "--batch", "4", "--steps", "2"]


def pictures(folder, sizes, channels=3, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i, (h, w) in enumerate(sizes):
        pixels = rng.integers(0, 255, (h, w, channels) if channels > 1 else (h, w), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for name in ("foggy", "clear"):
        pictures(root / name, [(16, 16)] * 12, seed=len(name))
    argv = ["train", "pairs", "--data", root / "foggy", "--data", root / "clear", "--method", "rddm", *TINY]
    assert main([str(a) for a in [*argv, "--out", root / "run"]]) == 0
    return root / "run"


def test_training_on_pairs_makes_the_degraded_picture_the_endpoint(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"psnr", "ssim"} <= set(metrics) and metrics["nfe"] == 5
    model = load_model(trained)
    assert model.kinds == {"degraded": "endpoint"} and model.targets == ("residual", "noise")
    assert model.process == Residual(schedule=Ramps(variance=0.01, steps=1000))
    with pytest.raises(Incompatible, match=r"variance is 0.01 in the file and 1.0 here"):
        load_model(trained, process=Residual(schedule=Ramps(variance=1.0, steps=1000)))


def test_pictures_of_any_size_come_back_at_their_own(capsys, trained, tmp_path):
    new = pictures(tmp_path / "new", [(16, 16), (37, 20), (5, 60)])
    pictures(new / "deep", [(12, 12)])
    said = run(capsys, "restore", trained, new, "--out", tmp_path / "out", "--steps", "3", "--json").out
    made = json.loads(said)
    assert (made["num"], made["steps"], made["nfe"], made["overlap"]) == (4, 3, 3, 2)
    for file, size in {"p0": (16, 16), "p1": (20, 37), "p2": (60, 5), "deep/p0": (12, 12)}.items():
        with Image.open(tmp_path / "out" / f"{file}.png") as image:
            assert image.size == size and image.mode == "RGB"
    one = ["restore", trained, new / "p1.png", "--out", tmp_path / "one.png"]
    assert run(capsys, *one).out.startswith("1 picture, 5 network calls a window")


def test_sampling_takes_degraded_pictures_too(capsys, trained, tmp_path):
    new = pictures(tmp_path / "new", [(16, 16), (32, 32)])
    run(capsys, "sample", trained, "--condition", new, "--out", tmp_path / "out", "--steps", "2")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["p0.png", "p1.png"]
    run(capsys, "sample", trained, "--num", "3", "--out", tmp_path / "made.npz", "--steps", "2")
    assert np.load(tmp_path / "made.npz")["degraded"].shape == (3, 3, 16, 16)


def test_a_picture_of_the_models_size_is_one_plain_sample(trained):
    import condiff as cd

    restorer, _ = open_restorer(trained, steps=4)
    picture = torch.rand(3, 16, 16) * 2 - 1
    out, nfe = restorer(picture, seed=7)
    generator = torch.Generator().manual_seed(7)
    plain = cd.sample(restorer.denoiser, cond={"degraded": picture[None]}, solver=cd.DDIM(), steps=4, rng=generator)
    torch.testing.assert_close(out, plain[0], rtol=1e-6, atol=1e-6)
    assert nfe == 4


def test_windows_do_not_depend_on_the_batch(trained):
    picture = torch.rand(3, 40, 50) * 2 - 1
    outs = [open_restorer(trained, steps=2, batch=batch)[0](picture)[0] for batch in (1, 64)]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)


def test_a_true_model_restores_a_large_picture_without_seams(trained):
    """Windows of a model that knows the answer join to the answer."""
    from dataclasses import replace

    from condiff.process import Prediction

    restorer, _ = open_restorer(trained, steps=3)

    class Half:
        """The clean picture is half the degraded one."""

        process, kinds, shape = restorer.denoiser.process, restorer.denoiser.kinds, (3, 16, 16)
        parameters = staticmethod(restorer.denoiser.parameters)

        def __call__(self, x, t, cond=None):
            return Prediction(x, self.process.at(t), {"x0": 0.5 * cond.source}, source=cond.source)

    picture = torch.rand(3, 40, 50) * 2 - 1
    out, _ = replace(restorer, denoiser=Half())(picture)
    torch.testing.assert_close(out, 0.5 * picture, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_restored_is_refused(capsys, trained, tmp_path):
    new = pictures(tmp_path / "new", [(16, 16), (9, 9)])
    (tmp_path / "there").mkdir()
    (new / "bad").mkdir()
    cases = [
        ([new, "--out", tmp_path / "there"], "exists already"),
        ([new, "--out", tmp_path / "a.png"], "is one picture"),
        ([new, "--out", tmp_path / "a.jpg"], "end in .png"),
        ([tmp_path / "nowhere", "--out", tmp_path / "a"], "no such folder"),
        ([new, "--out", tmp_path / "a", "--overlap", "9"], "overlap < size / 2"),
        ([new, "--out", tmp_path / "a", "--steps", "0"], "at least 1"),
        ([new, "--out", tmp_path / "a", "--batch", "0"], "batch must be at least 1"),
        ([new, "--out", tmp_path / "a", "--solver", "ddmi"], "unknown solver 'ddmi'"),
    ]
    for argv, message in cases:
        assert message in run(capsys, "restore", trained, *argv, code=2).err, message
    (new / "p0.jpg").write_bytes((new / "p0.png").read_bytes())
    assert "one file" in run(capsys, "restore", trained, new, "--out", tmp_path / "a", code=2).err
    os.remove(new / "p0.jpg")
    (new / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in run(capsys, "restore", trained, new, "--out", tmp_path / "a", code=2).err
    assert not (tmp_path / "a").exists()
    assert "config.json" in run(capsys, "restore", tmp_path / "new", new, "--out", tmp_path / "a", code=2).err


def test_runs_and_data_without_a_given_picture_are_refused(capsys, tmp_path):
    said = run(capsys, "train", "digits", "--method", "rddm", "--dry-run", code=2).err
    assert "the data needs one such condition" in said and "train pairs" in said
    new = pictures(tmp_path / "new", [(16, 16)] * 8)
    run(capsys, "train", "images", "--data", new, *TINY, "--out", tmp_path / "plain")
    said = run(capsys, "restore", tmp_path / "plain", new, "--out", tmp_path / "out", code=2).err
    assert "makes pictures from one given picture" in said


def test_pairs_of_other_proportions_are_refused(capsys, tmp_path):
    left, right = pictures(tmp_path / "a", [(16, 16)] * 8), pictures(tmp_path / "b", [(16, 16)] * 8)
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(left / "p3.png")
    argv = ["train", "pairs", "--data", left, "--data", right, "--method", "rddm", "--dry-run"]
    assert "other proportions" in run(capsys, *argv, code=2).err
