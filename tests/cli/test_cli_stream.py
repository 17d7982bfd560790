"""``condiff stream`` as a user types it: files in, files out; a camera that isn't there."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import SMALL, run

from condiff.cli.main import main
from condiff.data import read_frames
from condiff.methods import streaming
from condiff.streaming import Live
from condiff.video import write_frames


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of digits, and a folder of frames of which each second one is like the one before."""
    root = tmp_path_factory.mktemp("stream")
    assert (
        main(["train", "digits", "--steps", "2", "--out", str(root / "run"), *SMALL, "--set", "training.batch=8"]) == 0
    )
    (root / "frames").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i // 2).integers(0, 256, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "frames" / f"{i}.png")
    return root


def test_a_folder_to_a_folder_has_a_picture_for_every_frame(capsys, place):
    argv = ["stream", place / "run", "--video", place / "frames", "--label", "3", "--steps", "10", "30", "--json"]
    made = json.loads(run(capsys, *argv, "--out", place / "out").out)
    assert made["frames"] == 8 and made["calls"] == 9 and made["delay"] == 1
    frames = read_frames(place / "out")
    assert frames.shape == (8, 1, 8, 8)
    still = json.loads(run(capsys, *argv, "--out", place / "still.gif", "--still", "0.98").out)
    assert still["frames"] == 8 and still["calls"] == 5
    again = json.loads(run(capsys, *argv, "--out", place / "short", "--frames", "3").out)
    assert again["frames"] == 3
    for i, words in enumerate((["--clean"], ["--scale", "3"], ["--delta", "0"], ["--seed", "1"])):
        run(capsys, *argv, "--out", place / f"other-{i}", *words)
        assert not torch.equal(read_frames(place / f"other-{i}"), frames), words


def test_a_video_to_a_video(capsys, place, tmp_path):
    pytest.importorskip("av", reason="videos are read and written by PyAV")
    frames = torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    assert write_frames(frames, tmp_path / "in.mp4", rate=12.5) == 6
    said = run(
        capsys, "stream", place / "run", "--video", tmp_path / "in.mp4", "--label", "3", "--steps", "20", "--guidance",
        "initialize", "--out", tmp_path / "out.mp4",
    )  # fmt: skip
    assert "6 frames, 6 calls" in said.out + said.err
    assert read_frames(tmp_path / "out.mp4", channels=1).shape == (6, 1, 8, 8)


def test_a_pipeline(capsys, place, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
    from tiny import stable_diffusion

    stable_diffusion().save_pretrained(tmp_path / "sd")
    argv = ["stream", tmp_path / "sd", "--video", place / "frames", "--prompt", "a fox", "--out", tmp_path / "out"]
    run(capsys, *argv)
    assert read_frames(tmp_path / "out").shape == (8, 3, 16, 16)
    said = run(capsys, *argv, "--overwrite", "--guidance", "full", code=2)
    assert "needs negative conditions" in said.err
    run(
        capsys,
        *argv,
        "--overwrite",
        "--guidance",
        "full",
        "--negative",
        "blurry",
        "--frames",
        "2",
        "--dtype",
        "bfloat16",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "30", "10"], "steps rise"),
        (["--steps", "50"], "from 0 to 49"),
        (["--camera", "0"], "one of them"),
        (["--label", "eleven"], "unknown class"),
        (["--prompt", "a fox"], "a run knows no prompt"),
        (["--guidance", "selv"], "Did you mean 'self'"),
        (["--video", "nowhere.mp4"], "no such file"),
        (["--out", "here.tiff"], "ends in .gif"),
        (["--dtype", "float8"], "unknown dtype"),
        (["--rate", "0"], "rate must be > 0"),
    ],
    ids=lambda value: value[0].strip("-") + value[-1][:2] if isinstance(value, list) else "",
)
def test_bad_options_are_a_line_and_exit_code_2(capsys, place, options, message):
    argv = ["stream", place / "run", "--video", place / "frames", "--out", place / "bad", "--steps", "20", *options]
    said = run(capsys, *argv, code=2)
    assert message in said.err and said.err.count("\n") == 1
    assert not (place / "bad").exists()


def test_a_camera_until_there_are_enough_frames(capsys, place, monkeypatch):
    def pictures(number):
        for i in itertools.count(number):  # a camera never ends by itself, however slow the model is
            yield Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30), dtype=np.uint8))

    monkeypatch.setattr(streaming, "camera", pictures)
    argv = ["stream", place / "run", "--camera", "2", "--label", "3", "--steps", "20", "30", "--frames", "6", "--json"]
    made = json.loads(run(capsys, *argv, "--out", place / "camera").out)
    assert made["frames"] == len(read_frames(place / "camera")) == 6
    assert made["latency"] > 0.0 and made["dropped"] > 0  # the camera is faster than anything


def test_ctrl_c_ends_a_camera_and_keeps_what_is_there():
    def interrupted(frame):
        if frame == 3:
            raise KeyboardInterrupt
        return frame

    live = Live(range(10), interrupted, drop=False)
    assert list(streaming._of_camera(live, None)) == [0, 1, 2] and not live.running


def test_a_camera_that_is_not_there_is_said_before_a_model_is_loaded(capsys, tmp_path):
    pytest.importorskip("av", reason="cameras are read by PyAV")
    said = run(capsys, "stream", tmp_path / "no-model", "--camera", "93", "--out", tmp_path / "out.mp4", code=2)
    assert "camera 93" in said.err and "can't be opened" in said.err
