"""``condiff tie`` and ``condiff companions``: UniCon from folders to folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import TINY, noise_pictures, run

from condiff.cli.main import main
from condiff.errors import BadValue
from condiff.files import read_tensors
from condiff.model_files import load_model


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    root = tmp_path_factory.mktemp("tie")
    cells, outlines = noise_pictures(root / "cells", 0), noise_pictures(root / "outlines", 1)
    argv = ["train", "images", "--data", cells, *TINY, "--set", "training.batch=4", "--steps", "2"]
    assert main([str(a) for a in [*argv, "--out", root / "base"]]) == 0
    argv = [
        "tie",
        root / "base",
        "--data",
        cells,
        "--data",
        outlines,
        "--name",
        "outline",
        "--rank",
        "2",
        "--steps",
        "2",
    ]
    assert main([str(a) for a in [*argv, "--rank", "2", "--batch", "4", "--quiet", "--out", root / "tied"]]) == 0
    return root / "tied"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def sizes(folder):
    return {path.name: pixels(path).shape[:2] for path in sorted(folder.iterdir())}


def test_every_direction(capsys, tied, tmp_path):
    new = noise_pictures(tmp_path / "new", 2, count=2)
    steps = ["--steps", "2", "--json"]
    said = json.loads(run(capsys, "companions", tied, "--known", f"outline={new}", "--out", tmp_path / "a", *steps).out)
    assert (said["num"], said["steps"], said["known"]) == (2, 2, ["outline"])
    assert sizes(tmp_path / "a" / "image") == {"p0.png": (16, 16), "p1.png": (16, 16)}
    assert np.array_equal(pixels(tmp_path / "a" / "outline" / "p0.png"), pixels(new / "p0.png"))
    run(capsys, "companions", tied, "--known", f"image={new / 'p1.png'}", "--out", tmp_path / "b", *steps)
    assert list(sizes(tmp_path / "b" / "outline")) == ["p1.png"]
    run(capsys, "companions", tied, "--num", "3", "--out", tmp_path / "c.png", *steps)
    assert pixels(tmp_path / "c.png").shape[1] > 4 * 64
    known = ["--known", f"outline={new}", "--hold", "outline=0.5"]
    run(capsys, "companions", tied, *known, "--solver", "unipc", "--out", tmp_path / "d", "--steps", "3")
    assert len(sizes(tmp_path / "d" / "image")) == 2


def test_a_picture_depends_on_its_own_seed_only(capsys, tied, tmp_path):
    new = noise_pictures(tmp_path / "new", 2, count=3)
    words = ["companions", tied, "--known", f"outline={new}", "--steps", "2", "--seed", "4"]
    run(capsys, *words, "--out", tmp_path / "whole")
    run(capsys, *words, "--batch", "2", "--out", tmp_path / "parts")
    for i in range(3):
        whole, parts = (pixels(tmp_path / name / "image" / f"p{i}.png").astype(int) for name in ("whole", "parts"))
        assert abs(whole - parts).max() <= 1


def test_a_folder_of_other_things_is_not_replaced(capsys, tied, tmp_path):
    words = ["companions", tied, "--num", "1", "--steps", "1", "--overwrite", "--out", tmp_path / "here"]
    run(capsys, *words)
    (tmp_path / "here" / "thesis.tex").write_text("mine")
    assert "holds thesis.tex" in run(capsys, *words, code=2).err
    assert (tmp_path / "here" / "thesis.tex").read_text() == "mine"


def test_what_a_tie_says_as_json(capsys, tied, tmp_path):
    words = ["--name", "outline", "--rank", "2", "--steps", "1", "--batch", "4", "--device", "cpu", "--json"]
    new = noise_pictures(tmp_path / "new", 2, count=4)
    base = tied.parent / "base"
    said = run(capsys, "tie", base, "--data", new, "--data", new, *words, "--out", tmp_path / "t")
    made = json.loads(said.out)
    assert (made["out"], made["step"], made["pairs"]) == (str(tmp_path / "t"), 1, 4) and made["parameters"] > 0
    assert "unknown dtype" in run(capsys, "tie", base, "--data", new, "--data", new, "--dtype", "f8", code=2).err
    assert "no device" in run(capsys, "tie", base, "--data", new, "--data", new, "--device", "abc", code=2).err


def test_the_run_holds_the_adapter_alone(tied):
    about = json.loads((tied / "config.json").read_text())
    assert about["tie"]["name"] == "outline" and about["denoiser"]["variables"] == ["image", "outline"]
    assert (tied / "pair" / "first" / "adapter_model.safetensors").is_file()
    with pytest.raises(BadValue, match="weights of a pair alone"):
        load_model(tied)
    base = (tied.parent / "base" / "model.safetensors").stat().st_size
    assert (tied / "model.safetensors").stat().st_size < base


def test_sample_names_the_command_for_it(capsys, tied):
    assert "condiff companions" in run(capsys, "sample", tied, code=2).err


def test_bad_input(capsys, tied, tmp_path):
    new = noise_pictures(tmp_path / "new", 2, count=2)
    both = ["--known", f"outline={new}", "--known", f"image={new}"]
    others = noise_pictures(tmp_path / "others", 2, count=2)
    (others / "p1.png").rename(others / "q1.png")
    apart = ["--known", f"outline={new}", "--known", f"image={others}", "--hold", "image=0.5"]
    for words, said in (
        (["companions", tied, *apart], "has no partner of its name"),
        (["companions", tied, "--known", f"outlin={new}"], "Did you mean 'outline'"),
        (["companions", tied, "--known", "outline"], "NAME=PATH"),
        (["companions", tied, "--known", f"outline={tmp_path / 'none'}"], "none"),
        (["companions", tied, *both], "nothing is left to sample"),
        (["companions", tied, "--known", f"outline={new}", "--hold", "outline=2"], "a number in (0, 1]"),
        (["companions", tied, "--hold", "outline=0.5"], "unknown variable"),
        (["companions", tied, "--known", f"outline={new}", "--num", "5"], "leave --num out"),
        (["companions", tied, "--num", "1", "--solver", "heun", "--steps", "4"], "evaluates more than once"),
        (["companions", tied.parent / "base"], "no run of `condiff tie`"),
        (["tie", tied.parent / "base", "--data", new], "--data PICTURES --data COMPANIONS"),
        (["tie", tied.parent / "base", "--data", new, "--data", new, "--name", "image"], "another --name"),
        (["tie", tied.parent / "base", "--data", new, "--data", new, "--out", tied], "exists already"),
        (["tie", tied.parent / "base", "--data", new, "--data", new, "--prompt", "a cell"], "told no prompts"),
        (["tie", tied.parent / "base", "--data", new, "--data", new, "--size", "8", "8"], "leave --size"),
        (["tie", tied.parent / "none", "--data", new, "--data", new], "no such folder"),
        (["companions", tied, "--num", "1", "--prompt", "a cell"], "told no prompts"),
        (["companions", tied, "--num", "1", "--scale", "2"], "leave --scale out"),
        (["companions", tied, "--num", "0"], "--num must be at least 1"),
    ):
        out = ["--out", tmp_path / "out"] if "--out" not in words else []
        assert said in run(capsys, *words, *out, code=2).err
    assert "exists already" in run(capsys, "companions", tied, "--out", new, code=2).err


def test_a_base_that_is_gone(capsys, tied, tmp_path):
    shutil.copytree(tied, tmp_path / "tied")
    about = json.loads((tied / "config.json").read_text())
    about["tie"]["run"] = str(tmp_path / "gone")
    (tmp_path / "tied" / "config.json").write_text(json.dumps(about))
    assert "isn't there any more" in run(capsys, "companions", tmp_path / "tied", code=2).err


def test_a_trial_leaves_no_trace_and_says_what_is_wrong(capsys, tied, tmp_path, monkeypatch):
    root = tied.parent
    words = ["tie", root / "base", "--data", root / "cells", "--data", root / "outlines", "--name", "outline"]
    words += ["--rank", "2", "--steps", "2", "--batch", "4", "--quiet"]
    run(capsys, *words, "--no-trial", "--out", tmp_path / "untried")
    mine, other = (
        read_tensors(next((place / "pair").rglob("*.safetensors")))[0] for place in (tied, tmp_path / "untried")
    )
    torch.testing.assert_close(mine, other, rtol=0.0, atol=0.0)

    def broken(*_, **__):
        raise BadValue("no such solver")

    monkeypatch.setattr("condiff.methods.companions.UniCon.sample", broken)
    said = run(capsys, *words, "--out", tmp_path / "broken", code=2)
    assert "before training, sampling: no such solver (--no-trial trains without trying)" in said.err
    assert not (tmp_path / "broken").exists()
