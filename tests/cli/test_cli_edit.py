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
        (["--source", "3", "--target", "8", "--keep-below", "3"], "from 0 to 1"),
    ],
)
def test_what_is_refused(trained, picture, capsys, words, said):
    assert said in run(capsys, "edit", trained, picture, *words, code=2).err


def test_what_is_there_already_stays(trained, picture, tmp_path, capsys):
    (tmp_path / "eight.json").write_text("mine")
    words = ("--source", 3, "--target", 8, "--steps", 2, "--iterations", 1, "--out", tmp_path / "eight.png")
    assert "eight.json exists already" in run(capsys, "edit", trained, picture, *words, code=2).err
    assert (tmp_path / "eight.json").read_text() == "mine" and not (tmp_path / "eight.png").exists()
    run(capsys, "edit", trained, picture, *words, "--overwrite")
    assert json.loads((tmp_path / "eight.json").read_text())["pictures"] == 1


def test_more_steps_than_there_are_hundredths(trained, picture, tmp_path, capsys):
    words = ("--source", 3, "--target", 8, "--steps", 200, "--iterations", 0, "--out", tmp_path / "b.png", "--json")
    assert json.loads(run(capsys, "edit", trained, picture, *words).out)["calls"] in (197, 198)


def test_many_pictures_go_through_in_parts(trained, tmp_path, capsys, monkeypatch):
    """Each is what it is alone, whatever else is edited with it."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    words = ("--source", 3, "--target", 8, "--steps", 3, "--iterations", 2)
    whole, parts = (
        (monkeypatch.setattr("condiff.methods.editing.AT_ONCE", n),
         json.loads(run(capsys, "edit", trained, folder, *words, "--out", tmp_path / f"{n}.png", "--json").out))[1]
        for n in (16, 2)
    )  # fmt: skip
    assert whole["pictures"] == parts["pictures"] == 5
    assert whole["changed_rms"] == pytest.approx(parts["changed_rms"], abs=2e-3)
    assert whole["round_trip_psnr"] == pytest.approx(parts["round_trip_psnr"], abs=0.5)
    assert whole["calls"] == parts["calls"]


def test_pickled_weights_of_a_pipeline_are_refused(tmp_path, picture, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd", safe_serialization=False)
    assert list((tmp_path / "sd").rglob("*.bin"))
    words = ("--source", "a", "--target", "b", "--steps", 2, "--out", tmp_path / "b.png")
    assert "can't be loaded" in run(capsys, "edit", tmp_path / "sd", picture, *words, code=2).err


def test_an_empty_prompt_of_the_source_is_remarked_on(tmp_path, picture, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd")
    words = ("--source", "", "--target", "a square cake", "--steps", 2, "--iterations", 1, "--out", tmp_path / "b.png")
    assert "--source is empty" in run(capsys, "edit", tmp_path / "sd", picture, *words).out


def test_pictures_of_a_pipeline_by_prompts(tmp_path, capsys):
    from tests.interop.tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd")
    Image.fromarray(np.full((20, 30, 3), 128, dtype=np.uint8)).save(tmp_path / "cake.png")
    words = ("--source", "a round cake", "--target", "a square cake", "--steps", 3, "--iterations", 1)
    run(capsys, "edit", tmp_path / "sd", tmp_path / "cake.png", *words, "--out", tmp_path / "square.png")
    assert (tmp_path / "square.png").read_bytes().startswith(b"\x89PNG")
