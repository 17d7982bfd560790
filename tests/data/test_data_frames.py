"""Triplets from folders of frames, and clips as they are read."""

import numpy as np
import pytest
import torch
from PIL import Image

import condiff as cd
from condiff.data import latents, open_data, read_frames, triplets
from condiff.data.frames import natural
from condiff.errors import BadFile, BadType, BadValue


def shade(value, size=(4, 6)):
    return Image.fromarray(np.full((*size, 3), value, np.uint8))


def clip(folder, values, pattern="im{}.png", size=(4, 6)):
    folder.mkdir(parents=True)
    for i, value in enumerate(values):
        shade(value, size).save(folder / pattern.format(i + 1))


def levels(x):
    """The grey level of pictures (..., C, H, W)."""
    return ((x[..., 0, 0, 0] + 1) * 127.5).round().long().tolist()


def rows(data, epoch=0):
    batch = data.batch(range(len(data)), epoch)
    return [[a, b, c] for (a, c), b in zip(levels(batch["cond"]["frames"]), levels(batch["x"]), strict=True)]


def test_a_folder_of_frames_gives_all_its_triplets_in_the_order_of_their_numbers(tmp_path):
    clip(tmp_path / "clip", range(10, 130, 10), "frame-{}.png")  # 12 frames: frame-10 comes after frame-9
    data = triplets(tmp_path / "clip")
    assert rows(data) == [[v, v + 10, v + 20] for v in range(10, 110, 10)]
    assert rows(triplets(tmp_path / "clip", gap=5)) == [[10, 60, 110], [20, 70, 120]]
    assert data.shape == (3, 4, 6) and dict(data.kinds) == {"frames": "frames"}
    assert data.batch([0])["cond"]["frames"].shape == (1, 2, 3, 4, 6)


def test_folders_of_three_and_vimeo_lists(tmp_path):
    for i, name in enumerate(("00001/0001", "00001/0002", "00002/0001")):
        clip(tmp_path / "sequences" / name, [50 * i, 50 * i + 20, 50 * i + 40])
    (tmp_path / "tri_trainlist.txt").write_text("00001/0002\n00002/0001\n\n")
    assert rows(triplets(tmp_path)) == [[0, 20, 40], [50, 70, 90], [100, 120, 140]]
    assert rows(triplets(tmp_path, clips="tri_trainlist.txt")) == [[50, 70, 90], [100, 120, 140]]
    assert rows(open_data("triplets", path=str(tmp_path / "sequences"), size=2))[0] == [0, 20, 40]


def test_triplets_played_backwards_keep_their_middle(tmp_path):
    for i in range(16):
        clip(tmp_path / str(i), [i, i + 50, i + 100])
    data = triplets(tmp_path, reverse=True)
    seen = rows(data) + rows(data, epoch=1)
    assert {row[1] - row[0] for row in seen} == {50, -50}
    assert all(row[2] - row[1] == row[1] - row[0] for row in seen)
    assert data.fingerprint() != triplets(tmp_path).fingerprint()


def test_clips_that_are_too_short_are_named(tmp_path):
    clip(tmp_path / "long", [1, 2, 3])
    clip(tmp_path / "short", [1, 2])
    assert [tuple(r) for r in triplets(tmp_path).refused] == [("short", "2 frames, fewer than 3")]


def test_bad_triplets_are_refused(tmp_path):
    with pytest.raises(BadFile, match="no such folder"):
        triplets(tmp_path / "nowhere")
    with pytest.raises(BadFile, match="no pictures"):
        triplets(tmp_path)
    clip(tmp_path / "clip", [1, 2])
    with pytest.raises(BadFile, match=r"no folder in .* holds 3 frames: 1 hold fewer"):
        triplets(tmp_path)
    with pytest.raises(BadValue, match="gap must be at least 1"):
        triplets(tmp_path, gap=0)
    with pytest.raises(BadType, match="gap must be an integer"):
        triplets(tmp_path, gap=1.5)
    with pytest.raises(BadFile, match=r"no such file: list.txt, the list of clips"):
        triplets(tmp_path, clips="list.txt")
    (tmp_path / "list.txt").write_text("clip\nother\n")
    with pytest.raises(BadFile, match="names 2 clips, 1 of them aren't in"):
        triplets(tmp_path, clips="list.txt")


def test_numbers_order_names():
    names = ["im10", "im2", "a", "im2b", "IM1"]
    assert sorted(names, key=natural) == ["a", "IM1", "im2", "im2b", "im10"]


def test_frames_of_folders_lists_and_animations(tmp_path):
    clip(tmp_path / "clip", [0, 100, 200], "f{}.png")
    folder = read_frames(tmp_path / "clip", channels=3)
    assert folder.shape == (3, 3, 4, 6) and levels(folder) == [0, 100, 200]
    files = [tmp_path / "clip" / f"f{i}.png" for i in (3, 1)]
    assert levels(read_frames(files)) == [200, 0]
    pictures = [shade(v) for v in (0, 100, 200)]
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:], duration=40)
    assert levels(read_frames(tmp_path / "moving.gif")) == [0, 100, 200]
    deep = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    deep.save(tmp_path / "deep.png")
    assert float(read_frames([tmp_path / "deep.png"]).max()) == 1.0


def test_bad_frames_are_named(tmp_path):
    shade(1).save(tmp_path / "a.png")
    shade(1, (4, 7)).save(tmp_path / "b.png")
    with pytest.raises(BadValue, match=r"a.png has \(4, 6\), b.png \(4, 7\)"):
        read_frames(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(BadFile, match=r"b.png: not a readable picture"):
        read_frames(tmp_path)
    with pytest.raises(BadFile, match="no such file"):
        read_frames([tmp_path / "a.png", tmp_path / "c.png"])
    with pytest.raises(BadFile, match="no such file or folder"):
        read_frames(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="no pictures"):
        read_frames(tmp_path / "empty")


def test_a_data_set_of_latents_is_encoded_row_by_row(tmp_path):
    clip(tmp_path / "clip", range(0, 250, 10), size=(4, 8))
    data = triplets(tmp_path)
    codec = cd.codecs.Autoencoder(shape=(3, 4, 8), channels=2, width=8, multipliers=(1, 2))
    made = latents(data, codec, batch=5)
    assert len(made) == len(data) == 23 and made.shape == (2, 2, 4)
    row = data.batch([7])
    with torch.no_grad():
        torch.testing.assert_close(made.batch([7])["x"], codec.encode(row["x"]))
        after = codec.encode(row["cond"]["frames"][:, 1])
    torch.testing.assert_close(made.batch([7])["cond"]["frames"][:, 1], after)
    assert dict(made.kinds) == {"frames": "frames"}
