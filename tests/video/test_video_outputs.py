"""Frames written as folders, animations and videos."""

import pytest
import torch

from condiff.data import camera, read_frames
from condiff.data.video_files import footage
from condiff.errors import BadFile, BadValue
from condiff.video import write_frames
from condiff.video.files import check_output

FRAMES = torch.linspace(-1.0, 1.0, 5).reshape(5, 1, 1, 1).expand(5, 3, 16, 24)


@pytest.mark.parametrize("name", ["out", "out.gif", "out.webp", "out.mp4", "out.mov", "out.mkv"])
def test_frames_come_back(tmp_path, name):
    if name[-3:] in ("mp4", "mov", "mkv"):
        pytest.importorskip("av", reason="videos are written by PyAV")
    assert write_frames(iter(FRAMES), tmp_path / name, rate=10.0) == 5
    again = read_frames(tmp_path / name, channels=3)
    torch.testing.assert_close(again, FRAMES, rtol=0.0, atol=0.06)
    each = list(footage(tmp_path / name).each())
    assert len(each) == 5 and each[0].size == (24, 16)


def test_a_folder_is_replaced_only_where_it_holds_frames(tmp_path):
    write_frames(FRAMES, tmp_path / "out")
    write_frames(FRAMES[:2], tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["000000.png", "000001.png"]
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for call in (lambda: write_frames(FRAMES, tmp_path / "out"), lambda: check_output(tmp_path / "out", 8.0, True)):
        with pytest.raises(BadFile, match=r"holds thesis\.tex"):
            call()
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_a_rate_is_kept(tmp_path):
    pytest.importorskip("av", reason="videos are written by PyAV")
    write_frames(FRAMES, tmp_path / "slow.mp4", rate=12.5)
    assert footage(tmp_path / "slow.mp4").rate == pytest.approx(12.5)


@pytest.mark.parametrize("name", ["none", "none.gif", "none.mp4"])
def test_no_frames_leave_nothing(tmp_path, name):
    pytest.importorskip("av", reason="videos are written by PyAV")
    with pytest.raises(BadValue, match="there are no frames"):
        write_frames(FRAMES[:0], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_video_of_odd_sides(tmp_path):
    pytest.importorskip("av", reason="videos are written by PyAV")
    with pytest.raises(BadValue, match="even sides"):
        write_frames(FRAMES[..., :15, :], tmp_path / "odd.mp4")
    assert not list(tmp_path.iterdir())


def test_cameras_that_are_not_there():
    pytest.importorskip("av", reason="cameras are read by PyAV")
    with pytest.raises(BadFile, match="camera 93"):
        camera(93)
    with pytest.raises(BadValue, match="numbered from 0"):
        camera(-1)
