"""``--held-out``: a share, nothing, or other data; what a run says of it and does with it."""

import json

import numpy as np
import pytest
from PIL import Image

from condiff.data import read_tokenizer
from condiff.methods.data_request import held_out
from condiff.methods.runs import open_run
from tests.cli.terminal import TINY, run


def cells(folder, per_class, classes=("long", "round"), side=8):
    rng = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cells(tmp_path_factory.mktemp("data") / "cells", 12)


def train(capsys, *words, code=0):
    return run(capsys, "train", *words, *TINY, "--steps", 2, code=code)


def test_what_is_held_out_is_said(capsys, folder, tmp_path):
    said = train(capsys, "images", "--data", folder, "--out", tmp_path / "a", "--dry-run").out
    few = ": fewer than the 6 that figures need"
    assert f"held out: 2 samples (at random, of each class in proportion){few}" in said
    said = train(capsys, "images", "--data", folder, "--out", tmp_path / "a", "--held-out", 0.5, "--dry-run").out
    assert "held out: 12 samples (at random, of each class in proportion)\n" in said


def test_nothing_held_out(capsys, folder, tmp_path):
    out = tmp_path / "run"
    said = train(
        capsys, "images", "--data", folder, "--out", out, "--held-out", 0, "--set", "training.validate_every=1"
    )
    assert "nothing held out" in said.out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["samples"] == 8 and "frechet" not in metrics and (out / "samples.png").is_file()
    assert "validation_loss" not in (out / "metrics.jsonl").read_text()
    assert json.loads((out / "config.json").read_text())["data"]["length"] == 24  # all of it was trained on
    for command in ("evaluate", "classify"):
        assert "nothing is left to judge it by" in run(capsys, command, out, code=2).err
    others = cells(tmp_path / "others", 4)
    run(capsys, "evaluate", out, "--against", others)
    assert "frechet" in json.loads((out / "metrics.json").read_text())
    run(capsys, "train", "--resume", out)  # opens the same data


def test_other_data_are_held_out(capsys, folder, tmp_path):
    others, out = cells(tmp_path / "others", 5, classes=("round",)), tmp_path / "run"
    said = train(capsys, "images", "--data", folder, "--out", out, "--held-out", others).out
    assert "held out: 5 samples" in said
    again = open_run(out)
    assert len(again.data) == 24 and again.unseen.classes == again.data.classes == ("long", "round")
    assert again.unseen.labels.tolist() == [1] * 5  # with the numbers that the training's classes have
    assert again.request.held_out == (str(others),)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["{}"], "is what is trained on"),
        (["{}-none"], "no such folder"),
        (["1"], "a share in (0, 1)"),
        (["-0.5"], "a share in (0, 1)"),
        (["0.2", "0.3"], "one share, or paths"),
        (["{}", "{}"], "images needs --data PATH, got 2"),
    ],
)
def test_bad_words_end_with_a_clear_line(capsys, folder, tmp_path, words, hint):
    if len(words) == 2 and words[0] == words[1]:
        words = [str(tmp_path / "x"), str(tmp_path / "y")]
    words = [word.format(folder) for word in words]
    said = train(
        capsys, "images", "--data", folder, "--out", tmp_path / "a", f"--held-out={words[0]}", *words[1:], code=2
    )
    assert hint in said.err and not (tmp_path / "a").exists()


def test_other_shapes_and_classes_are_refused(capsys, folder, tmp_path):
    small, ant = cells(tmp_path / "small", 2, side=6), cells(tmp_path / "ants", 2, classes=("ant",))
    for others, hint in ((small, "samples of shape (1, 6, 6)"), (ant, "['ant'] are none of the known ones")):
        said = train(capsys, "images", "--data", folder, "--out", tmp_path / "a", "--held-out", others, code=2)
        assert hint in said.err


def test_digits_have_their_own(capsys, tmp_path):
    said = train(capsys, "digits", "--out", tmp_path / "a", "--held-out", 0.5, code=2)
    assert "held-out part of their own" in said.err


def test_other_text_is_read_with_the_tokenizer_of_the_training(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh " * 60)
    (tmp_path / "b.txt").write_text("hagb " * 20)
    (tmp_path / "c.txt").write_text("xyz " * 20)
    argv = ["text", "--data", tmp_path / "a.txt", "--length", 8, "--out", tmp_path / "run"]
    said = train(capsys, *argv, "--held-out", tmp_path / "c.txt", code=2)
    assert "are not in this alphabet" in said.err
    train(capsys, *argv, "--held-out", tmp_path / "b.txt")
    again = open_run(tmp_path / "run")
    assert again.unseen.vocab == again.data.vocab == 9
    assert again.unseen.tokenizer.decode(again.unseen.ids[:5].tolist()) == "hagb "
    assert read_tokenizer(tmp_path / "run" / "tokenizer.json").size == 9


def test_pairs_take_two_folders(capsys, folder, tmp_path):
    left, right = (cells(tmp_path / name, 2) for name in ("foggy", "clear"))
    words = ["pairs", "--data", folder, "--data", folder, "--out", tmp_path / "run"]
    assert "held out: 4 samples" in train(capsys, *words, "--held-out", left, right, "--dry-run").out


def test_the_words():
    assert held_out([]) == 0.1 and held_out(["0"]) == 0.0 and held_out(["a", "b"]) == ("a", "b")
