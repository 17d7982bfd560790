"""``condiff edit``: digits of one class as another, pictures of a pipeline by prompts, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from condiff.cli.main import main
from tests.cli.terminal import TINY, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit") / "digits"
    assert main(["train", "digits", "--out", str(folder), "--steps", "200", *TINY]) == 0
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "three.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    return path


def test_a_digit_becomes_another_and_the_way_back_is_told(trained, picture, tmp_path, capsys):
    out = tmp_path / "eight.png"
    words = ("--source", 3, "--target", 8, "--steps", 10)
    said = json.loads(run(capsys, "edit", trained, picture, *words, "--out", out, "--json").out)
    assert out.is_file() and json.loads(out.with_suffix(".json").read_text())["target"] == "8"
    plain = json.loads(
        run(capsys, "edit", trained, picture, *words, "--iterations", 0, "--out", tmp_path / "b.png", "--json").out
    )
    assert said["round_trip_psnr"][0] > plain["round_trip_psnr"][0] + 10.0  # exact against DDIM inversion
    assert plain["calls"] < said["calls"] <= 11 * plain["calls"] and said["changed_rms"][0] > 0.0
    assert "already" in run(capsys, "edit", trained, picture, *words, "--out", out, code=2).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source", "3", "--target", "3"], "nothing would change"),
        (["--source", "3", "--target", "cat"], "unknown class"),
        (["--source", "3", "--target", "8", "--out", "x.jpg"], "must end in .png"),
        (["--source", "3", "--target", "8", "--quantile", "2"], "quantile"),
    ],
)
def test_what_is_refused(trained, picture, capsys, words, said):
    assert said in run(capsys, "edit", trained, picture, *words, code=2).err


def test_pictures_of_a_pipeline_by_prompts(tmp_path, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd")
    Image.fromarray(np.full((20, 30, 3), 128, dtype=np.uint8)).save(tmp_path / "cake.png")
    words = ("--source", "a round cake", "--target", "a square cake", "--steps", 3, "--iterations", 1)
    run(capsys, "edit", tmp_path / "sd", tmp_path / "cake.png", *words, "--out", tmp_path / "square.png")
    assert (tmp_path / "square.png").read_bytes().startswith(b"\x89PNG")
