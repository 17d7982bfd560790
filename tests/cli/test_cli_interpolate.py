"""``condiff interpolate`` and training on triplets, as a user types it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import run

from condiff.cli.main import main
from condiff.data import read_frames

TINY = ["--set", "network.network.width=8", "--set", "network.network.layers=1", "--set", "sampler.steps=4"]


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A folder with a clip of twelve frames, a moving square; a run on its triplets."""
    root = tmp_path_factory.mktemp("street")
    (root / "clip").mkdir()
    for i in range(12):
        pixels = np.full((16, 16, 3), 40, np.uint8)
        pixels[4:8, i : i + 4] = (200, 180, 90)
        Image.fromarray(pixels).save(root / "clip" / f"{i}.png")
    method = ["--method", "consecutive-brownian-bridge", "--steps", "2", "--batch", "4"]
    argv = ["train", "triplets", "--data", root / "clip", *method, "--out", root / "run", *TINY]
    assert main([str(a) for a in argv]) == 0
    return root


def test_training_on_triplets_leaves_a_run_that_samples(capsys, street):
    config = json.loads((street / "run" / "config.json").read_text())
    assert config["recipe"]["process"]["part"] == "process.Bridge"
    assert (street / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "psnr" in json.loads((street / "run" / "metrics.json").read_text())
    made = json.loads(run(capsys, "sample", street / "run", "--num", "2", "--steps", "4", "--json").out)
    assert made["num"] == 2 and made["nfe"] == 4


def test_two_pictures_and_a_folder(capsys, street):
    a, b = street / "clip" / "0.png", street / "clip" / "4.png"
    common = ["--model", street / "run", "--steps", "4"]
    said = run(capsys, "interpolate", a, b, "--factor", "4", "--out", street / "between", *common)
    assert "2 frames in, 5 out" in said.out
    frames = read_frames(street / "between")
    assert frames.shape == (5, 3, 16, 16)
    assert torch.equal(frames[[0, 4]], read_frames([a, b]))
    argv = ["interpolate", street / "clip", "--side", "mean", "--out", street / "slow.gif", "--json", *common]
    made = json.loads(run(capsys, *argv).out)
    assert made["given"] == 12 and made["frames"] == 23 and made["side"] == "mean"
    assert run(capsys, *argv, "--overwrite").err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factor", "3"], "the factor is 2, 4, 8"),
        (["--steps", "2"], "needs 3 to 1000 steps"),
        (["--eta", "1.5"], "lies in [0, 1], got 1.5"),
        (["--side", "nex"], "Did you mean 'next'"),
        (["--rate", "0"], "rate must be > 0"),
        (["--model", "nowhere"], "no such folder"),
        (["--out", "here.tiff"], "ends in .gif, .png, .webp"),
        (["--weights", "emma"], "Did you mean 'ema'"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_bad_options_are_a_line_and_exit_code_2(capsys, street, options, message):
    argv = ["interpolate", street / "clip", "--model", street / "run", "--out", street / "bad", *options]
    said = run(capsys, *argv, code=2)
    assert message in said.err and said.err.count("\n") == 1
    assert said.err.rpartition("\r")[2].startswith("error: ")  # on a line of its own, after a bar that is gone
    assert not (street / "bad").exists()


def test_what_is_missing_is_said(capsys, street, tmp_path):
    assert "--model RUN --out FOLDER" in run(capsys, "interpolate", street / "clip", code=2).err
    model = ["--model", street / "run", "--out", tmp_path / "out"]
    assert "at least two frames" in run(capsys, "interpolate", street / "clip" / "0.png", *model, code=2).err
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    argv = ["interpolate", street / "clip" / "0.png", tmp_path / "small.png", *model]
    assert "different sizes" in run(capsys, *argv, code=2).err


def test_methods_that_need_triplets_say_so(capsys):
    said = run(capsys, "train", "digits", "--method", "consecutive-brownian-bridge", "--dry-run", code=2)
    assert "train on triplets" in said.err
