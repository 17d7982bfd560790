"""``condiff sample --superpose``: several classes at once."""

import json
import warnings

import pytest
from terminal import TINY, run

from condiff.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("superposed") / "digits"
    assert main(["train", "digits", "--method", "cfg", "--out", str(folder), "--steps", "3", *TINY]) == 0
    return folder


@pytest.mark.parametrize("mode", ["and", "or", "average"])
def test_two_classes_at_once(trained, tmp_path, capsys, mode):
    two = ["--label", "3", "--label", "5", "--superpose", mode, "--num", "3", "--guidance", "2"]
    out = run(capsys, "sample", trained, *two, "--steps", "50", "--out", tmp_path / f"{mode}.png", "--json").out
    made = json.loads(out)
    assert made["labels"] == [f"3-{mode}-5"] * 3 and made["superpose"] == mode and made["nfe"] == 50
    assert (tmp_path / f"{mode}.png").read_bytes().startswith(b"\x89PNG")


def test_a_solver_that_tells_densities_and_enough_steps_are_the_default(trained, tmp_path, capsys):
    two = ["--label", "3", "--label", "5", "--superpose", "and", "--num", "1"]
    made = json.loads(run(capsys, "sample", trained, *two, "--out", tmp_path / "x.npz", "--json").out)
    assert made["steps"] == 200 and made["solver"] == "DDIM(eta=1.0)"  # the method's own


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--label", "3"], "two classes or more"),
        ([], "two classes or more"),
        (["--label", "3", "--label", "3"], "two classes or more"),
        (["--label", "3", "--label", "eleven"], "unknown class"),
        (["--label", "3", "--label", "5", "--solver", "euler"], "the noise of the reverse SDE"),
    ],
)
def test_bad_input_is_said_in_a_line(trained, tmp_path, capsys, words, said):
    words = ["sample", trained, "--superpose", "and", *words, "--num", "1", "--out", tmp_path / "no.png"]
    error = run(capsys, *words, code=2).err
    assert said in error and error.startswith("error: ") and len(error.splitlines()) == 1


def test_an_unknown_mode(trained, tmp_path, capsys):
    words = ["--label", "3", "--label", "5", "--superpose", "nand", "--num", "1", "--out", tmp_path / "no.png"]
    assert "unknown mode 'nand'" in run(capsys, "sample", trained, *words, code=2).err


def test_a_warning_is_a_line_without_the_code_that_raised_it(trained, tmp_path, capsys):
    few = ["--label", "3", "--label", "5", "--superpose", "or", "--num", "1", "--steps", "10"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        error = run(capsys, "sample", trained, *few, "--out", tmp_path / "few.png").err
    (line,) = [line for line in error.splitlines() if "warning" in line.lower()]
    assert line.startswith("warning: ") and ".py" not in error
