"""``condiff train unpaired``: from one set of samples to another, and how a run is then sampled."""

import json

import numpy as np
import pytest
from PIL import Image
from terminal import SMALL, run

from condiff.cli.main import main
from condiff.model_files import load_model
from condiff.process import Interpolant

TINY = [
    *SMALL,
    "--batch",
    "8",
    "--steps",
    "2",
    "--set",
    "sampler.steps=3",
]

BETWEEN = ["train", "unpaired", "--option", "range=standardise", "--method", "stochastic-interpolants"]
FROM_NOISE = 'process={"part": "process.Gaussian", "schedule": {"part": "process.Cosine"}}'


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    root = tmp_path_factory.mktemp("unpaired")
    rng = np.random.default_rng(0)
    np.save(root / "a.npy", rng.normal(0.0, 3.0, (80, 2)))
    np.save(root / "b.npy", rng.uniform(5.0, 9.0, (60, 2)))
    return root


@pytest.fixture(scope="module")
def trained(arrays):
    path = ["--set", "process.path=trig", "--set", "process.gamma=bsquared"]
    argv = [*BETWEEN, "--data", arrays / "a.npy", "--data", arrays / "b.npy", *path, *TINY, "--out", arrays / "run"]
    assert main([str(a) for a in argv]) == 0
    return arrays / "run"


def test_the_path_is_a_setting(trained):
    model = load_model(trained)
    assert model.process == Interpolant("trig", "bsquared") and model.targets == ("mean_velocity", "noise")
    assert model.kinds == {"source": "endpoint"}
    config = json.loads((trained / "config.json").read_text())
    assert config["request"]["source"] == "unpaired" and len(config["request"]["paths"]) == 2
    metrics = json.loads((trained / "metrics.json").read_text())
    assert "psnr" not in metrics and metrics["nfe"] == 3  # there is no true sample to compare with


def test_a_run_is_sampled_with_any_noise_level(capsys, trained, tmp_path):
    said = {}
    for name, words in {
        "half": ["--set", "solver.noise=0.5"],
        "two": ["--set", "solver.noise=2"],
        "ode": ["--solver", "ddim"],
        "none": ["--set", "solver.noise=0"],
    }.items():
        out = tmp_path / f"{name}.npz"
        argv = ["sample", trained, "--num", "5", "--steps", "6", "--out", out, "--json", *words]
        made = json.loads(run(capsys, *argv).out)
        said[name] = np.load(out)["x"]
        assert made["nfe"] == 6
    assert not np.allclose(said["half"], said["two"])
    np.testing.assert_allclose(said["ode"], said["none"], rtol=0.1)  # they differ in the last step, to the mean
    assert 3.0 < said["ode"].mean() < 11.0  # in the units of the target's file


def test_sources_of_ones_own(capsys, trained, tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((3, 2), np.float32))
    out = tmp_path / "out.npz"
    run(capsys, "sample", trained, "--condition", tmp_path / "mine.npy", "--out", out)
    assert np.load(out)["x"].shape == (3, 2) and np.array_equal(np.load(out)["source"], np.zeros((3, 2)))


def test_pictures_and_evaluation(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("day", "night", "new_day", "new_night"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    data = ["--data", tmp_path / "day", "--data", tmp_path / "night"]
    argv = ["train", "unpaired", *data, "--method", "stochastic-interpolants", *TINY, "--out", tmp_path / "run"]
    said = run(capsys, *argv).out
    assert "day-to-night/train: 11 samples" in said and "from day/train: 11 samples" in said
    assert (tmp_path / "run" / "samples.png").is_file()
    against = ["--against", tmp_path / "new_day", "--against", tmp_path / "new_night"]
    scores = json.loads(run(capsys, "evaluate", tmp_path / "run", *against, "--json").out)
    assert scores["samples"] == 12 and "psnr" not in scores


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--data", "a.npy"], "needs --data SOURCE --data TARGET, got 1"),
        (["--data", "a.npy", "--data", "b.npy", "--set", "process.gamma=brownain"], "Did you mean 'brownian'"),
        (["--data", "a.npy", "--data", "b.npy", "--set", "process.path=line"], "Did you mean 'linear'"),
        (["--data", "a.npy", "--data", "b.npy", "--set", FROM_NOISE], "the data's endpoint 'source' would be ignored"),
        (["--data", "a.npy", "--data", "b.npy", "--set", "process.gamma=zero"], "follows a score"),
    ],
)
def test_bad_input_is_code_2(capsys, arrays, words, match):
    words = [str(arrays / w) if w.endswith(".npy") else w for w in words]
    said = run(capsys, *BETWEEN, *words, "--dry-run", code=2)
    assert match in said.err


def test_settings_of_the_sampler_are_checked(capsys, trained, tmp_path):
    said = run(capsys, "sample", trained, "--set", "solver.noise=-1", "--out", tmp_path / "x.npz", code=2)
    assert "noise must be finite and >= 0" in said.err
    said = run(capsys, "sample", trained, "--set", "solver.nose=1", "--out", tmp_path / "x.npz", code=2)
    assert "Did you mean" in said.err
