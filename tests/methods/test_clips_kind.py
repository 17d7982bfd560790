"""Clips from the command line: trained on a folder, continued from a picture or a clip."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch

from condiff.cli.main import main
from condiff.data import bouncing_ball, clips, read_frames, split, video
from condiff.errors import BadValue
from condiff.methods import Facts
from condiff.methods.flow_matching import recipe as flow
from condiff.methods.kinds import kind_of
from condiff.methods.kinds.clips import side_by_side
from condiff.video import write_frames


def command(*words):
    """The exit code of a command in this process, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue() + err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve recordings of ten frames, one as a folder of pictures."""
    root = tmp_path_factory.mktemp("balls")
    x = bouncing_ball(12, frames=10, side=16).batch(range(12))["x"]
    for i, clip in enumerate(x):
        write_frames(clip, root / (f"ball-{i:02d}" + (".gif" if i else "")))
    return root


TINY = ["--set", "network.width=16", "--set", "network.depth=1", "--set", "network.heads=2"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "balls"
    words = ["train", "video", "--data", str(folder), "--given", "1", "--frames", "7", "--steps", "3", "--batch", "2"]
    words += ["--method", "ca2-vdm", "--set", "sampler.steps=2", "--out", str(out), *TINY]
    words += ["--option", "channels=1"]
    assert command(*words)[0] == 0
    return out


def test_the_data_are_clips_with_first_frames(folder):
    data = video(folder, given=2, frames=5, channels=1)
    assert data.shape == (5, 1, 16, 16) and len(data) == 24  # two from each, one behind the other
    row = data.batch([0])
    assert torch.equal(row["cond"]["first"], row["x"][:, :2]) and data.kinds == {"first": "frames"}
    assert type(kind_of(data)).__name__ == "Clips"
    assert type(kind_of(clips(folder, 5))).__name__ == "Clips"
    train, held = split(data, 0.2)
    paths = [{str(part.data.windows[i].footage.path) for i in part.index} for part in (train, held)]
    assert paths[0] and paths[1] and not paths[0] & paths[1]  # recordings are never in both
    with pytest.raises(BadValue, match="at least one given"):
        video(folder, given=0)
    with pytest.raises(BadValue, match="fewer than the clip"):
        video(folder, given=5, frames=5)


def test_other_methods_learn_clips_too(folder):
    data = video(folder, given=1, frames=4, channels=1)
    chosen = flow(Facts.of(data))
    said = chosen.denoiser(0)(data.batch([0])["x"], 0.5, data.batch([0])["cond"])
    assert said.velocity.shape == (1, 4, 1, 16, 16)


def test_a_run_explains_itself(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"psnr", "motion", "motion_floor", "samples"} <= set(metrics)
    assert metrics["nfe"] == 1 + 3 * (2 + 1)  # the first write, and for each chunk two steps and a write
    assert (run / "samples.png").is_file() and "video" in json.loads((run / "config.json").read_text())["request"][
        "source"
    ]


@pytest.mark.parametrize("given", ["picture", "clip", "none"])
def test_clips_of_any_length_are_continued(run, folder, tmp_path, given):
    words = {"picture": ["--condition", str(next((folder / "ball-00").glob("*.png")))], "none": ["--num", "1"]}
    words["clip"] = ["--condition", str(folder / "ball-03.gif")]
    out = tmp_path / "made.gif"
    code, text = command("sample", str(run), *words[given], "--frames", "14", "--out", str(out))
    assert code == 0, text
    made = read_frames(out, channels=1)
    assert made.shape == (14, 1, 16, 16)
    if given == "clip":  # the whole clip was given
        assert (made[:10] - read_frames(folder / "ball-03.gif", channels=1)).abs().max() < 0.05


def test_samples_depend_on_their_own_seed(run, tmp_path):
    for name, words in (("all", ["--num", "3"]), ("batch", ["--num", "3", "--batch", "1"])):
        assert command("sample", str(run), *words, "--out", str(tmp_path / f"{name}.npy"))[0] == 0
    both = [np.load(tmp_path / f"{name}.npy") for name in ("all", "batch")]
    assert abs(both[0] - both[1]).max() < 1e-4


def test_a_video_of_a_clip(run, tmp_path):
    out = tmp_path / "made.mp4"
    assert command("sample", str(run), "--num", "1", "--out", str(out))[0] == 0
    assert read_frames(out, channels=1).shape == (7, 1, 16, 16)


def test_folders_of_frames_and_of_animations(run, tmp_path):
    assert command("sample", str(run), "--num", "1", "--out", str(tmp_path / "frames"))[0] == 0
    assert len(list((tmp_path / "frames").glob("*.png"))) == 7
    assert command("sample", str(run), "--num", "2", "--out", str(tmp_path / "clips"))[0] == 0
    assert len(list((tmp_path / "clips").glob("*.gif"))) == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--frames", "1"], "at least 2"),
        (["--condition", "CLIP", "--frames", "5"], "10 frames are given"),
        (["--out", "made.txt"], "must end in"),
        (["--condition", "nothing.png"], "nothing.png"),
    ],
)
def test_bad_words_end_with_a_clear_line(run, folder, tmp_path, words, hint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("CLIP", str(folder / "ball-03.gif")) for word in words]
    code, text = command("sample", str(run), *words)
    assert code == 2 and hint in text


def test_clips_side_by_side_make_one():
    x = torch.arange(5.0)[:, None, None, None, None].expand(5, 3, 1, 4, 4)
    one = side_by_side(x)
    assert one.shape == (3, 1, 12, 18)
    assert one[0, 0, 7, 8] == 4.0 and one[0, 0, 7, 14] == 1.0 and one[2, 0, 2, 14] == 2.0
    assert torch.equal(side_by_side(x[:1]), x[0])
