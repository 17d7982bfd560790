"""The command line on data as it comes: text labels, series, few rows, devices that aren't there."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from terminal import SMALL, run

from condiff.cli.main import main

TINY = [*SMALL, "--batch", "8", "--steps", "2"]


@pytest.fixture
def series(tmp_path):
    """Two classes of series, channels first, named by text, and a number each."""
    rng = np.random.default_rng(0)
    file = tmp_path / "series.npz"
    names, speed = np.array(["walk", "run"])[np.arange(80) % 2], rng.uniform(0, 9, 80).astype(np.float32)
    np.savez(file, x=rng.uniform(0, 80, (80, 2, 12)).astype(np.float32), kind=names, speed=speed)
    return file


def test_series_with_text_labels_beside_another_condition(capsys, series, tmp_path):
    argv = ["train", "arrays", "--data", series, "--labels", "kind", "--option", 'cond=["speed"]']
    argv += ["--option", "range=[0,80]", "--option", "channels=to-last", "--out", tmp_path / "run", *TINY]
    said = run(capsys, *argv).out
    assert "2 classes: run (36), walk (36)" in said and "speed (scalar)" in said
    assert "series: 12 steps of 2 channels" in said
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png;base64,") == 2


def test_what_is_not_used_is_said(capsys, series):
    said = run(capsys, "train", "arrays", "--data", series, "--option", "range=[0,80]", "--dry-run").out
    assert "not used: kind (80,), speed (80,)" in said


def test_text_under_another_name_is_refused(capsys, series):
    argv = ["train", "arrays", "--data", series, "--option", "range=[0,80]", "--option", "cond=kind", "--dry-run"]
    assert "only a condition named label" in run(capsys, *argv, code=2).err


@pytest.mark.parametrize("method", ["flow-matching", "ddpm", "edm"])
def test_every_method_trains_and_samples_pairs_of_few_pictures(capsys, tmp_path, method):
    """Too few held-out pairs for distances between distributions; the restoration's own figures are there."""
    rng = np.random.default_rng(0)
    for folder in ("foggy", "clear"):
        (tmp_path / folder).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    argv = ["train", "pairs", "--data", tmp_path / "foggy", "--data", tmp_path / "clear", "--method", method]
    run(capsys, *argv, "--out", tmp_path / "run", *TINY, "--set", "sampler.steps=3")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"psnr", "ssim", "samples"} <= set(metrics) and (tmp_path / "run" / "report.html").is_file()
    run(capsys, "sample", tmp_path / "run", "--num", "2", "--steps", "2", "--out", tmp_path / "two.PNG")
    assert (tmp_path / "two.PNG").read_bytes().startswith(b"\x89PNG")
    assert "no device 'nowhere'" in run(capsys, "sample", tmp_path / "run", "--device", "nowhere", code=2).err


def test_version(capsys):
    assert run(capsys, "--version").out.startswith("condiff ")


def test_help_into_a_closed_pipe_is_no_error():
    words = [sys.executable, "-m", "condiff.cli.main", "train", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == 0 and b"Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """A run on vectors with a number and a vector as conditions, in units far from [-1, 1]."""
    folder, rng = tmp_path_factory.mktemp("waves"), np.random.default_rng(0)
    x = rng.uniform(100, 300, (64, 6)).astype(np.float32)
    np.savez(folder / "waves.npz", x=x, level=x.mean(1), stats=np.stack([x.min(1), x.max(1)], 1))
    argv = ["train", "arrays", "--data", folder / "waves.npz", "--option", "range=[100,300]"]
    argv += ["--option", 'cond=["level","stats"]', "--out", folder / "run", *TINY]
    assert main([str(a) for a in argv]) == 0
    return folder


def test_conditions_can_be_given(capsys, waves, tmp_path):
    argv = ["sample", waves / "run", "--condition", "level=150", "--condition", "stats=[100,200]", "--num", "3"]
    run(capsys, *argv, "--out", tmp_path / "a.npz")
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["level"].tolist() == [150.0] * 3 and arrays["stats"].tolist() == [[100.0, 200.0]] * 3
    run(capsys, "sample", waves / "run", "--condition", waves / "waves.npz", "--out", tmp_path / "b.npz")
    given, stored = np.load(tmp_path / "b.npz"), np.load(waves / "waves.npz")
    np.testing.assert_array_equal(given["stats"], stored["stats"])


def test_arrays_come_back_in_the_units_of_the_data(capsys, waves, tmp_path):
    """The model works in [-1, 1]; the data, from 100 to 300, has a mean near 200."""
    run(capsys, "sample", waves / "run", "--num", "64", "--out", tmp_path / "a.npy")
    assert abs(np.load(tmp_path / "a.npy").mean() - 200) < 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["levle=3"], "Did you mean 'level'"),
        (["3"], "could be any of"),
        (["level=tall"], "neither a number"),
        (["stats=[1,2,3]"], "rows of shape (2,)"),
        (["level=NaN"], "NaN or infinity"),
        (["nowhere.npz"], "no such file"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(capsys, waves, tmp_path, words, message):
    argv = [word for value in words for word in ("--condition", value)]
    assert message in run(capsys, "sample", waves / "run", *argv, "--out", tmp_path / "c.npz", code=2).err


def test_new_pictures_are_restored_into_a_folder(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("foggy", "clear", "new"):
        (tmp_path / folder).mkdir()
        for i in range(12 if folder != "new" else 3):
            pixels = rng.integers(0, 255, (24, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"p{i}.png")
    argv = ["train", "pairs", "--data", tmp_path / "foggy", "--data", tmp_path / "clear", "--size", "16"]
    run(capsys, *argv, "--out", tmp_path / "run", *TINY, "--set", "sampler.steps=2")
    run(capsys, "sample", tmp_path / "run", "--condition", tmp_path / "new", "--out", tmp_path / "restored")
    assert sorted(p.name for p in (tmp_path / "restored").iterdir()) == ["p0.png", "p1.png", "p2.png"]
    with Image.open(tmp_path / "restored" / "p0.png") as restored:
        assert restored.size == (16, 16)
    one = ["sample", tmp_path / "run", "--condition", tmp_path / "new" / "p1.png", "--out", tmp_path / "one.png"]
    assert run(capsys, *one).out.startswith("1 sample, 2 network calls each")
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    run(capsys, "sample", checkpoint, "--num", "2", "--out", tmp_path / "early.npz")
    assert np.load(tmp_path / "early.npz")["degraded"].shape == (2, 3, 16, 16)


def test_resume_takes_no_other_configuration(capsys, waves):
    said = run(capsys, "train", "--resume", waves / "run", "--steps", "20", "--lr", "1e-4", code=2).err
    assert "leave out --steps, --lr" in said


def test_a_dry_run_refuses_what_cannot_be_built(capsys, waves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run(capsys, "train", "digits", "--set", "network.width=30", "--dry-run", code=2).err
    assert "heads must divide the width" in said


def test_a_run_is_called_after_its_data(capsys, waves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, "train", "arrays", "--data", waves / "waves.npz", "--option", "range=[100,300]", *TINY)
    assert (tmp_path / "runs" / "waves" / "report.html").is_file()


def test_other_held_out_data_is_read_as_the_run_was(capsys, tmp_path):
    """Scaled by the run's mean and deviation, and with its classes' numbers, whichever of them are there."""
    from condiff.methods.runs import open_run

    rng = np.random.default_rng(0)
    names = np.array(["ant", "bee", "cow"])
    x = rng.normal(5.0, 2.0, (60, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, label=names[np.arange(60) % 3])
    np.savez(tmp_path / "b.npz", x=x[:20] + 3, label=names[1 + np.arange(20) % 2])
    np.savez(tmp_path / "c.npz", x=x[:20] + 3, label=np.array(["dog"] * 20))
    argv = ["train", "arrays", "--data", tmp_path / "a.npz", "--labels", "label", "--option", "range=standardise"]
    run(capsys, *argv, "--out", tmp_path / "run", *TINY)
    trained = open_run(tmp_path / "run")
    other = trained.request.other([tmp_path / "b.npz"], trained.data)
    assert other.classes == ("ant", "bee", "cow") and other.labels.unique().tolist() == [1, 2]
    scaled = (x[:20] + 3 - x.mean()) / x.std()
    np.testing.assert_allclose(other.batch(range(20))["x"], scaled, rtol=1e-4, atol=1e-5)
    run(capsys, "evaluate", tmp_path / "run", "--against", tmp_path / "b.npz")
    said = run(capsys, "evaluate", tmp_path / "run", "--against", tmp_path / "c.npz", code=2)
    assert "classes ['dog'] are none of the known ones" in said.err


def test_pairs_are_evaluated_against_other_pairs(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for folder, count in (("foggy", 12), ("clear", 12), ("foggy2", 3), ("clear2", 3)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / folder / f"{i}.png")
    two = ["--data", tmp_path / "foggy", "--data", tmp_path / "clear"]
    run(capsys, "train", "pairs", *two, "--out", tmp_path / "run", *TINY, "--set", "sampler.steps=2")
    other = ["--against", tmp_path / "foggy2", "--against", tmp_path / "clear2"]
    metrics = json.loads(run(capsys, "evaluate", tmp_path / "run", *other, "--json").out)
    assert metrics["samples"] == 3 and "psnr" in metrics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "flip=maybe"], "true or false"),
        (["--guidance", "inf"], "must be finite"),
        (["--out", "pictures/a/0.png"], "exists already"),
    ],
)
def test_more_bad_input(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), i).save(tmp_path / "pictures" / name / f"{i}.png")
    assert message in run(capsys, "train", "images", "--data", "pictures", *words, *TINY, code=2).err
    said = run(capsys, "train", "images", "--data", "pictures", "--labels", "none", "--dry-run").out
    assert "no conditions" in said
    assert "no such file" in run(capsys, "sample", "pictures/a/0.png", code=2).err


def test_gaps_in_the_data_are_bad_input(capsys, tmp_path):
    np.savez(tmp_path / "gaps.npz", x=np.full((30, 4), np.nan, np.float32))
    said = run(capsys, "train", "arrays", "--data", tmp_path / "gaps.npz", "--option", "range=keep", code=2)
    assert "NaN" in said.err and "fill the gaps" in said.err
    (tmp_path / "words.npz").write_text("{}")
    said = run(capsys, "train", "arrays", "--data", tmp_path / "words.npz", code=2)
    assert "no .npy or .npz file" in said.err and "unsafe" not in said.err
