"""The command line on data as it comes: text labels, series, few rows, devices that aren't there."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from condiff.cli.main import main

TINY = ["--set", "network.width=16", "--set", "network.depth=1", "--batch", "8", "--steps", "2"]


def run(capsys, *argv, code=0):
    assert main([str(a) for a in argv]) == code
    return capsys.readouterr()


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
