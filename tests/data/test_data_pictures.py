"""Folders of pictures: what is understood, what is refused, and that pixels arrive as they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from condiff.data import Framing, halves, images, loader, open_data, pairs, shuffled
from condiff.data.picture import cut, decode, to_array, to_mode
from condiff.errors import BadFile, BadValue


def picture(seed, h=10, w=12, channels=3, low=0, high=256):
    return np.random.RandomState(seed).randint(low, high, (h, w, channels)).astype(np.uint8).squeeze()


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for c, name in enumerate(("cat", "dog")):
        for i in range(4):
            save(tmp_path / name / f"{i}.png", picture(10 * c + i))
    return tmp_path


def test_a_folder_with_subfolders(folder):
    data = images(folder)
    assert (len(data), data.shape, data.classes) == (8, (3, 10, 12), ("cat", "dog"))
    assert data.kinds == {"label": "label"} and data.labels.tolist() == [0] * 4 + [1] * 4
    batch = data.batch([6, 1])
    expected = torch.from_numpy(picture(12)).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(batch["x"][0], expected, rtol=0, atol=1e-6)
    assert batch["cond"]["label"].tolist() == [1, 0]
    text = data.describe()
    assert "8 samples of shape (3, 10, 12)" in text and "cat (4), dog (4)" in text


@pytest.mark.parametrize("options", [dict(crop="random", flip=True), dict(flip=True), dict(crop="random", channels=1)])
def test_augmentation_depends_on_the_row_and_the_epoch_only(folder, options):
    data, bare = images(folder, 8, **options), images(folder, 8, cache=0, **options)
    first = data.batch(range(8), epoch=5)["x"]
    assert torch.equal(first, bare.batch(range(8), epoch=5)["x"])  # cached and decoded anew
    assert torch.equal(first[[3]], bare.batch([3], epoch=5)["x"])
    assert not torch.equal(first, data.batch(range(8), epoch=6)["x"])
    order = shuffled(8)
    for a, b in zip(loader(bare, order, 3, epoch=1), loader(bare, order, 3, workers=2, epoch=1), strict=True):
        assert torch.equal(a["x"], b["x"])


def test_without_check_it_reads_the_same(folder):
    data, lazy = images(folder, 8), images(folder, 8, channels=3, check=False)
    assert torch.equal(data.batch(range(8))["x"], lazy.batch(range(8))["x"])
    assert data.fingerprint() == lazy.fingerprint()
    with pytest.raises(BadValue, match="without check="):
        images(folder, 8, check=False)


def test_fingerprint_sees_content_and_options(folder):
    before = images(folder, 8).fingerprint()
    assert before == images(folder, 8).fingerprint() != images(folder, 8, flip=True).fingerprint()
    save(folder / "cat" / "0.png", picture(99))
    assert images(folder, 8).fingerprint() != before


def test_corrupt_pictures_are_named_counted_and_skipped_on_request(folder):
    good = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "half.png").write_bytes(good[: len(good) // 2])
    (folder / "dog" / "text.jpg").write_text("not a picture")
    (folder / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(BadFile, match="3 of 11 pictures can't be used") as caught:
        images(folder)
    assert all(name in str(caught.value) for name in ("cat/half.png", "dog/text.jpg", "dog/empty.png", "skip_bad=True"))
    data = images(folder, skip_bad=True)
    assert len(data) == 8 and data.labels.tolist() == [0] * 4 + [1] * 4
    assert [r.name for r in data.refused] == ["cat/half.png", "dog/empty.png", "dog/text.jpg"]
    assert "refused 3" in data.describe()
    lazy = images(folder, 8, channels=3, check=False)
    with pytest.raises(BadFile, match=r"half\.png"):
        lazy.batch(range(len(lazy)))


def test_nothing_good_is_refused_even_when_skipping(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(BadFile, match="1 of 1 pictures"):
        images(tmp_path, skip_bad=True)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(BadFile, match="it is empty"):
        images(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    with pytest.raises(BadFile, match=r"it holds \{'.txt': 1\}"):
        images(tmp_path)
    with pytest.raises(BadFile, match="no such folder"):
        images(tmp_path / "nowhere")
    with pytest.raises(BadFile, match=r"notes.txt is a file, not a folder of pictures"):
        images(tmp_path / "notes.txt")


def test_sizes_that_differ_need_a_size(folder):
    save(folder / "cat" / "big.png", picture(5, 30, 40))
    with pytest.raises(BadValue, match=r"2 sizes .* \(10, 12\) to \(30, 40\): give size="):
        images(folder)
    assert images(folder, (6, 9)).shape == (3, 6, 9)


def test_a_list_of_pictures_keeps_its_order(folder):
    files = sorted(folder.rglob("*.png"), reverse=True)[:3]
    listed = images([*files, files[0]], size=(6, 5), labels=None)
    alone = [images(file, size=(6, 5), labels=None).batch([0])["x"][0] for file in files]
    assert torch.equal(listed.batch(range(4))["x"], torch.stack([*alone, alone[0]]))
    with pytest.raises(BadValue, match="names at least one"):
        images([], size=4)
    with pytest.raises(BadFile, match=r"nothing\.png"):
        images([*files, folder / "nothing.png"], size=4, labels=None)


def test_loose_pictures_beside_subfolders_are_ambiguous(folder):
    save(folder / "loose.png", picture(1))
    with pytest.raises(BadValue, match="1 of 9 pictures lie in"):
        images(folder)
    assert images(folder, labels=None).kinds == {}


def test_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "a.png", picture(1, channels=1))
    save(tmp_path / "notes" / "b.txt.png", picture(2, channels=1))
    (tmp_path / "notes" / "b.txt.png").rename(tmp_path / "b.png")
    (tmp_path / "readme.md").write_text("x")
    data = images(tmp_path)
    assert data.kinds == {} and data.classes == () and data.labels is None and data.shape == (1, 10, 12)
    assert "no conditions" in data.describe() and "*.md: not pictures" in data.describe()


def test_labels_from_a_table(folder):
    table = folder / "labels.csv"
    rows = [f"cat/{i}.png,{10 - i}" for i in range(3)]
    table.write_text("file,label\n" + "\n".join(rows) + "\n")
    data = images(folder, labels=table)
    assert data.classes == ("8", "9", "10") and data.labels.tolist() == [2, 1, 0]  # numbers in the order of their value
    assert len(data.refused) == 5 and "has no label" in data.describe()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,label\ncat/0.png,a\ncat/nope.png,b\n", r"labels 1 pictures that are not in .*nope.png"),
        ("name,class\ncat/0.png,a\n", "columns file,label"),
        ("file,label\n", "no rows"),
        ("file,label\ncat/0.png,a\ncat/0.png,b\n", "1 files are listed twice"),
        ("file,label\ncat/0.png,\n", "1 have no label"),
    ],
)
def test_faulty_tables(folder, text, match):
    (folder / "l.csv").write_text(text)
    with pytest.raises(BadValue, match=match):
        images(folder, labels=folder / "l.csv")
    with pytest.raises(BadFile, match="neither 'folders'"):
        images(folder, labels="folder")


# Modes


def converted(image, **options):
    return to_array(to_mode(image, Framing(**options), "p"), Framing(**options))


def test_sixteen_bits_are_kept(tmp_path):
    values = np.array([[0, 1, 1000], [40000, 65534, 65535]], dtype=np.uint16)
    save(tmp_path / "deep.png", values)
    for cache in (0, 512):
        x = images(tmp_path, cache=cache).batch([0])["x"][0, 0]
        torch.testing.assert_close(x, torch.from_numpy(values.astype(np.float32)) * 2 / 65535 - 1, rtol=0, atol=1e-6)
    assert images(tmp_path, channels=3).shape == (3, 2, 3)
    save(tmp_path / "shallow.png", picture(1, 2, 3, channels=1))
    mixed = images(tmp_path).batch([0, 1])["x"]  # each scaled by its own depth
    torch.testing.assert_close(mixed[1, 0], torch.from_numpy(picture(1, 2, 3, channels=1)).float() / 127.5 - 1)


def test_transparency_needs_a_word(tmp_path):
    rgba = picture(3, channels=4)
    rgba[0, 0] = (10, 20, 30, 0)
    save(tmp_path / "t.png", rgba)
    with pytest.raises(BadFile, match="transparent pixels"):
        images(tmp_path)
    x = images(tmp_path, background="white").batch([0])["x"]
    assert x[0, :, 0, 0].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(
        images(tmp_path, channels=4).batch([0])["x"][0], torch.from_numpy(rgba).permute(2, 0, 1).float() / 127.5 - 1
    )
    rgba[..., 3] = 255
    save(tmp_path / "t.png", rgba)
    assert images(tmp_path).shape == (3, 10, 12)  # opaque: nothing is lost


def test_modes():
    rgb = Image.fromarray(picture(1))
    palette = rgb.quantize(16)
    np.testing.assert_array_equal(converted(palette, channels=3), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    np.testing.assert_array_equal(converted(rgb, channels=1)[0], np.asarray(rgb.convert("L")))
    grey = Image.fromarray(picture(1, channels=1))
    assert (converted(grey, channels=3) == np.asarray(grey)).all()
    one_bit = grey.convert("1")
    assert set(np.unique(converted(one_bit, channels=1))) <= {0, 255}
    assert converted(rgb.convert("CMYK"), channels=3).shape == (3, 10, 12)
    with pytest.raises(BadFile, match="floating-point"):
        converted(Image.fromarray(np.zeros((2, 2), np.float32)), channels=1)
    with pytest.raises(BadFile, match="32-bit values"):
        converted(Image.fromarray(np.full((2, 2), 70000, np.int32)), channels=1)


def test_orientation_is_applied_and_animations_are_refused(tmp_path):
    image = Image.fromarray(picture(2))
    exif = image.getexif()
    exif[274] = 6  # turned by 90 degrees
    image.save(tmp_path / "r.jpg", exif=exif)
    assert images(tmp_path).shape == (3, 12, 10)
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    frames[0].save(tmp_path / "r.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(BadFile, match="holds 3 frames"):
        images(tmp_path, 8)


# Geometry


def test_area_filter_is_the_block_mean():
    image = Image.fromarray(picture(4, 8, 12, 1))
    small = converted(image, channels=1, size=(4, 6), filter="area")[0]
    blocks = np.asarray(image).reshape(4, 2, 6, 2).mean((1, 3))
    assert np.abs(small - blocks).max() <= 1.0  # Pillow rounds twice: rows, then columns


def test_center_crop_covers_and_squeezing_does_not():
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (40, 1))  # 40 x 120
    centre = converted(Image.fromarray(ramp), channels=1, size=(20, 20))[0]
    assert abs(float(centre.mean()) - 119) < 1 and centre.min() >= 80 and centre.max() <= 160
    squeezed = converted(Image.fromarray(ramp), channels=1, size=(20, 20), crop=None)[0]
    assert squeezed.min() < 10 and squeezed.max() > 230


def test_random_windows_reach_every_position():
    array = np.arange(5)[None, None]
    positions = {int(cut(array, (1, 3), 0.0, u)[0, 0, 0]) for u in np.linspace(0, 0.999, 50)}
    assert positions == {0, 1, 2}


@pytest.mark.parametrize(
    "options",
    [dict(size=(0, 4)), dict(size=(4, 4, 4)), dict(channels=2), dict(crop="centre"), dict(filter="lancoz")],
)
def test_bad_framing(options):
    with pytest.raises(BadValue):
        Framing(**options)


# Pairs


@pytest.fixture
def two_folders(tmp_path):
    for i in range(4):
        clean = picture(i, 20, 24)
        save(tmp_path / "clear" / f"{i}.png", clean)
        save(tmp_path / "fog" / f"{i}.bmp", clean // 2)
    return tmp_path / "fog", tmp_path / "clear"


def test_pairs_are_cut_and_mirrored_alike(two_folders):
    data = pairs(*two_folders, 12, crop="random", flip=True, filter="nearest", kind="endpoint")
    assert data.kinds == {"degraded": "endpoint"} and data.shape == (3, 12, 12)
    for epoch in range(4):
        batch = data.batch(range(4), epoch)
        clean, fog = ((v + 1) * 127.5 for v in (batch["x"], batch["cond"]["degraded"]))
        torch.testing.assert_close(fog.round(), (clean.round() / 2).floor(), rtol=0, atol=0)


def test_a_smaller_partner_is_brought_to_size(two_folders):
    fog, clear = two_folders
    for i in range(4):
        save(fog / f"{i}.bmp", picture(i, 5, 6))
    batch = pairs(fog, clear, filter="nearest").batch([0])
    assert batch["cond"]["degraded"].shape == batch["x"].shape == (1, 3, 20, 24)
    small = torch.from_numpy(picture(0, 5, 6)).permute(2, 0, 1).float() / 127.5 - 1
    expected = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(batch["cond"]["degraded"][0], expected, rtol=0, atol=1e-6)


def test_faults_of_pairs(two_folders):
    fog, clear = two_folders
    save(fog / "9.png", picture(9))
    with pytest.raises(BadValue, match=r"1 pictures have no partner: 9 \(only in .*fog"):
        pairs(fog, clear, 8)
    data = pairs(fog, clear, 8, skip_bad=True)
    assert len(data) == 4 and "9: has no partner" in data.describe()
    (fog / "9.png").unlink()
    save(fog / "1.bmp", picture(1, 24, 20))
    with pytest.raises(BadFile, match=r"1\.bmp: 24x20 pixels, other proportions than 20x24 of 1\.png"):
        pairs(fog, clear, 8)
    assert len(pairs(fog, clear, 8, skip_bad=True)) == 3
    save(fog / "2.png", picture(1))
    with pytest.raises(BadValue, match="have the same name"):
        pairs(fog, clear, 8)
    with pytest.raises(BadValue, match="kind of a picture condition"):
        pairs(fog, clear, 8, kind="maps")


def test_decode_says_what_is_wrong():
    with pytest.raises(BadFile, match="row 3: not a readable picture"):
        decode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "row 3")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16"])
def test_pictures_that_hold_two_side_by_side(tmp_path, mode):
    """The layout of pix2pix: each half, in whatever mode it is stored, is what that part of the picture is."""
    ending = ".tif" if mode in ("CMYK", "I;16") else ".png"
    for i in range(3):
        whole = picture(i, 8, 20) if mode != "I;16" else (picture(i, 8, 20, 1).astype(np.uint16) * 200)
        image = Image.fromarray(whole) if mode == "I;16" else Image.fromarray(whole).convert(mode)
        image.save(tmp_path / f"{i}{ending}")
    options = {"channels": 1} if mode == "I;16" else {}
    data, other = (open_data("halves", path=str(tmp_path), given=side, **options) for side in ("left", "right"))
    every = images(tmp_path, **options).batch([2, 0])["x"]
    rows, swapped = data.batch([2, 0]), other.batch([2, 0])
    assert data.shape == (every.shape[1], 8, 10) and data.kinds == {"degraded": "map"}
    assert torch.equal(torch.cat([rows["cond"]["degraded"], rows["x"]], 3), every)
    assert torch.equal(swapped["x"], rows["cond"]["degraded"])
    assert torch.equal(swapped["cond"]["degraded"], rows["x"])
    assert data.fingerprint() != other.fingerprint()


def test_halves_are_cut_and_mirrored_alike(tmp_path):
    half = picture(0, 9, 9)
    save(tmp_path / "a.png", np.concatenate([half, half], 1))
    data = halves(tmp_path, 6, crop="random", flip=True, kind="endpoint")
    for epoch in range(5):
        row = data.batch([0], epoch)
        assert torch.equal(row["x"], row["cond"]["degraded"])
    assert data.kinds == {"degraded": "endpoint"}


def test_what_is_no_two_halves_is_refused(tmp_path):
    save(tmp_path / "a.png", picture(0, 8, 20))
    save(tmp_path / "b.png", picture(1, 8, 19))
    with pytest.raises(BadFile, match=r"b.png.* 19 pixels wide"):
        halves(tmp_path)
    assert len(halves(tmp_path, skip_bad=True)) == 1
    with pytest.raises(BadValue, match="half that is given"):
        halves(tmp_path, given="top")
    with pytest.raises(BadValue, match="kind of a picture"):
        halves(tmp_path, kind="label")
