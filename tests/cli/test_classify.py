"""``condiff classify``: figures of a run, classes of pictures, bad input."""

import json

import numpy as np
import pytest
from PIL import Image
from terminal import TINY, run

from condiff.cli.main import main
from condiff.data import digits
from condiff.figures import to_uint8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "digits", "--out", str(folder), "--steps", "3", *TINY]) == 0
    return folder


def pictures(folder, count):
    folder.mkdir()
    for i, pixels in enumerate(to_uint8(digits("test").batch(range(count))["x"])):
        Image.fromarray(pixels[..., 0]).save(folder / f"{i}.png")
    return folder


def test_figures_of_a_run(capsys, trained):
    argv = ["classify", trained, "--num", "12", "--levels", "4", "--batch", "512"]
    said = json.loads(run(capsys, *argv, "--json").out)
    table = np.array(said["confusion"])
    assert table.shape == (10, 10) and table.sum() == said["samples"] == 12
    assert said["accuracy"] == pytest.approx(np.trace(table) / 12)
    assert said["evaluations"] == 40 and 0.0 <= said["calibration_error"] <= 1.0
    assert (trained / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((trained / "classify.json").read_text())["accuracy"] == said["accuracy"]
    text = run(capsys, *argv).out
    assert "12 samples, 40 network evaluations each" in text and "calibration error" in text and "written: " in text


def test_the_batch_does_not_matter_and_stages_spare_evaluations(capsys, trained, tmp_path):
    argv = ["classify", trained, "--num", "6", "--stage", "2:3", "--stage", "8:1", "--json", "--out", tmp_path / "a"]
    one = json.loads(run(capsys, *argv).out)
    two = json.loads(run(capsys, *argv, "--batch", "7").out)
    assert one["confusion"] == two["confusion"] and one["evaluations"] < 80
    assert one["stages"] == [[2, 3], [8, 1]] and "calibration_error" not in one
    assert not (tmp_path / "a" / "reliability.png").exists()


def test_pictures_are_named(capsys, trained, tmp_path):
    folder = pictures(tmp_path / "new", 3)
    said = json.loads(run(capsys, "classify", trained, folder, "--levels", "3", "--out", tmp_path / "o", "--json").out)
    assert [p["image"] for p in said["predictions"]] == ["0.png", "1.png", "2.png"]
    assert all(p["class"] in said["classes"] and 0.0 < p["probability"] <= 1.0 for p in said["predictions"])
    assert "accuracy" not in said
    said = run(capsys, "classify", trained, folder / "1.png", "--levels", "3", "--out", tmp_path / "o").out
    assert "1.png" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "no such file"),
        (["RUN", "--stage", "50"], "LEVELS:KEEP"),
        (["RUN", "--stage", "5:3"], "keeps 1"),
        (["RUN", "--stage", "5:11", "--stage", "9:1"], "fewer and fewer of 10"),
        (["RUN", "--levels", "1001"], "1001 noise levels"),
        (["RUN", "--num", "0"], "at least 1"),
        (["RUN", "--target", "eps"], "unknown prediction"),
        (["RUN", "--loss", "l1", "--weight", "elbo"], "squared errors"),
        (["RUN", "--prompts", "PROMPTS"], "name one"),
        (["RUN", "RUN", "--prompts", "PROMPTS"], "not a saved diffusers pipeline"),
        (["RUN", "RUN", "--prompts", "nowhere.csv"], "no such file"),
        (["RUN", "nowhere/"], "no such"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, trained, tmp_path, argv, message):
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt,classname,classidx\na cat,cat,0\na dog,dog,1\n")
    words = [{"RUN": trained, "PROMPTS": prompts}.get(a, a) for a in argv]
    said = run(capsys, "classify", *words, "--out", tmp_path / "out", code=2)
    assert message in said.err and said.err.startswith("error: ") and "Traceback" not in said.err


def test_a_run_without_classes_is_refused(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32))
    argv = ["train", "arrays", "--data", tmp_path / "x.npy", "--out", tmp_path / "run", "--steps", "2", "--batch", "8"]
    run(capsys, *argv, *TINY[:4])
    assert "without classes" in run(capsys, "classify", tmp_path / "run", code=2).err


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["classify", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: condiff" in text and "None" not in text and "--prompts" in text
