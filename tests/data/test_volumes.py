"""Folders of scans: names, geometry, intensities, what is refused, and writing back."""

import nibabel as nib
import numpy as np
import pytest
import torch

from condiff.codecs import Autoencoder, Haar
from condiff.data import (
    Encoded,
    TensorData,
    Volume,
    find_scans,
    latents,
    modality_of,
    of_volumes,
    open_data,
    phantom,
    phantoms,
    read_volume,
    split,
    volumes,
    write_phantoms,
    write_volume,
)
from condiff.data.volumes import Scan, centred, check_alike, intensities
from condiff.errors import BadFile, BadType, BadValue

AFFINE = np.array([[0.0, -2.0, 0.0, 10.0], [1.5, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]])


def scan(seed, shape=(6, 8, 10)):
    return np.random.RandomState(seed).rand(*shape).astype(np.float32) * 1000


def save(path, array, affine=AFFINE):
    return write_volume(path, array, Volume(array, affine))


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        for j, name in enumerate(("t1", "t2", "pd")):
            save(tmp_path / "scans" / f"p{i}" / f"p{i}-{name}.nii.gz", scan(10 * i + j))
    return tmp_path / "scans"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_there_and_back(tmp_path, ending):
    array = scan(0)
    header = nib.Nifti1Header()
    header["descrip"], header["xyzt_units"] = b"scanner", 10
    image = nib.Nifti1Image(array, AFFINE, header)
    image.set_qform(AFFINE, code=1)
    image.set_sform(AFFINE, code=4)
    nib.save(image, tmp_path / f"a{ending}")
    mine = read_volume(tmp_path / f"a{ending}")
    assert np.array_equal(mine.array, array) and np.array_equal(mine.affine, AFFINE)
    write_volume(tmp_path / f"b{ending}", array * 0.5, mine)
    theirs = nib.load(tmp_path / f"b{ending}")
    assert np.array_equal(np.asarray(theirs.dataobj), array * 0.5) and np.array_equal(theirs.affine, AFFINE)
    assert theirs.get_data_dtype() == np.float32
    assert bytes(theirs.header["descrip"]).strip(b"\0") == b"scanner"
    assert int(theirs.header["sform_code"]) == 4 and int(theirs.header["qform_code"]) == 1
    assert theirs.header.get_zooms() == pytest.approx((1.5, 2.0, 3.0))


def test_integers_with_slope_are_scaled_and_the_slope_is_not_inherited(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINE)
    image.header.set_slope_inter(0.5, -3.0)
    nib.save(image, tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii")
    assert np.array_equal(read.array, np.asarray(nib.load(tmp_path / "a.nii").dataobj, dtype=np.float32))
    write_volume(tmp_path / "b.nii", read.array, read)
    assert np.array_equal(read_volume(tmp_path / "b.nii").array, read.array)


TURNED = np.array([[-1.44, -0.59, 0.0, 10.0], [-0.44, 1.91, 0.0, -20.0], [0.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
KINDS = {
    "qform": (np.int16, (5, 6, 7), 1, 0),
    "sform": (np.uint8, (5, 6, 7), 0, 2),
    "both": (np.float64, (5, 6, 7), 1, 1),
    "neither": (np.int32, (5, 6, 7), 0, 0),
    "one-volume series": (np.int16, (5, 6, 7, 1), 1, 1),
    "series without": (np.int16, (5, 6, 7, 1, 1), 0, 0),
}


@pytest.mark.parametrize("end", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_says_where_a_scan_lies_is_kept(tmp_path, kind, end):
    """Either transform, both (also where they differ) or none; integers, big-endian files, axes of length 1 behind."""
    dtype, shape, qform, sform = KINDS[kind]
    values = (np.random.RandomState(0).rand(*shape) * 100).astype(np.dtype(dtype).newbyteorder(end))
    image = nib.Nifti1Image(values, None, nib.Nifti1Header(endianness=end))
    image.header.set_zooms([1.5, 2.0, 3.0, 2.5, 1.0][: len(shape)])
    image.header.set_qform(TURNED, code=qform, strip_shears=True)
    image.header.set_sform(TURNED @ np.diag([1.0, 1.0, 1.5, 1.0]), code=sform)
    nib.save(image, tmp_path / "a.nii")
    theirs, mine = nib.load(tmp_path / "a.nii"), read_volume(tmp_path / "a.nii")
    out = nib.load(write_volume(tmp_path / "b.nii.gz", mine.array, mine))
    assert out.shape == (5, 6, 7) and out.get_data_dtype().newbyteorder("=") == np.float32
    assert np.array_equal(np.asarray(out.dataobj), values.reshape(5, 6, 7).astype(np.float32))
    assert np.array_equal(out.affine, theirs.affine)
    assert out.header.get_zooms() == theirs.header.get_zooms()[:3]
    assert np.allclose(out.get_qform(), theirs.get_qform(), atol=1e-6)
    for name in ("sform_code", "qform_code"):
        assert int(out.header[name]) == int(theirs.header[name])


def test_nifti2_stays_nifti2(tmp_path):
    nib.save(nib.Nifti2Image(scan(0), AFFINE), tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", read.array, read)
    assert isinstance(nib.load(tmp_path / "b.nii"), nib.Nifti2Image)


def test_unreadable_volumes(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"not a volume")
    (tmp_path / "x.txt").write_text("no")
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4, 5), np.float32), AFFINE), tmp_path / "four.nii")
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.complex64), AFFINE), tmp_path / "complex.nii")
    save(tmp_path / "good.nii.gz", scan(0))
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:200])
    for name in ("bad.nii.gz", "x.txt", "missing.nii", "cut.nii.gz"):
        with pytest.raises(BadFile):
            read_volume(tmp_path / name)
    with pytest.raises(BadValue, match="three axes"):
        read_volume(tmp_path / "four.nii")
    with pytest.raises(BadType):
        read_volume(tmp_path / "complex.nii")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadFile, match="pickle"):
        read_volume(tmp_path / "object.npy")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("BraTS-1/BraTS-1-t1n.nii.gz", ("t1n", "BraTS-1/BraTS-1")),
        ("case7_t1n.nii", ("t1n", "case7")),
        ("case7/t1n.nii.gz", ("t1n", "case7")),
        ("t1n/case7.npy", ("t1n", "case7")),
        ("a/t1n/b/case7.npy", ("t1n", "a/b/case7")),
        ("case7-xt1n.nii", None),
        ("case7-t1c.nii", None),
    ],
)
def test_modality_of_a_path(path, expected):
    from pathlib import Path

    assert modality_of(Path(path), ["t1n", "n"]) == expected


def test_reads_cases(folder):
    data = volumes(folder, "t2", condition=["t1", "pd"], multiple=2)
    assert len(data) == 4 and data.shape == (1, 6, 8, 10) and data.kinds == {"t1": "map", "pd": "map"}
    rows = data.batch([2, 0])
    assert rows["x"].shape == (2, 1, 6, 8, 10) and list(rows["cond"]) == ["t1", "pd"]
    assert torch.equal(rows["x"][0, 0], torch.from_numpy(intensities(scan(21))))
    assert torch.equal(rows["cond"]["pd"][1, 0], torch.from_numpy(intensities(scan(2))))
    assert float(rows["x"].min()) == -1.0 and float(rows["x"].max()) == 1.0
    assert "6 x 8 x 10 voxels" in data.describe()


def test_target_alone_and_opening_by_name(folder):
    data = open_data("volumes", path=str(folder), target="t1", size=8)
    assert data.kinds == {} and data.shape == (1, 8, 8, 8)
    assert "not used: 8 volumes" in data.describe()


def test_archives(tmp_path):
    for i in range(2):
        np.savez(tmp_path / f"c{i}.npz", t1=scan(i), t2=scan(i + 5), other=np.zeros(3))
    data = volumes(tmp_path, "t2", condition="t1", multiple=1)
    assert len(data) == 2
    assert torch.equal(data.batch([1])["x"][0, 0], torch.from_numpy(intensities(scan(6))))


def test_intensities_are_the_papers():
    array = scan(3, (20, 20, 20)) - 300
    low, high = np.percentile(array, [0.1, 99.9])
    expected = (np.clip(array, low, high) - low) / (high - low)
    assert np.abs((intensities(array) + 1) / 2 - expected).max() < 1e-6


@pytest.mark.parametrize("size", [(8, 8, 8), (3, 11, 6), (6, 8, 10)])
def test_centred_is_undone(size):
    array = scan(0)
    back = centred(centred(array, size), array.shape)
    kept = centred(np.ones_like(array), size, fill=0.0)
    kept = centred(kept, array.shape, fill=0.0) == 1
    assert centred(array, size).shape == size
    assert np.array_equal(back[kept], array[kept]) and (back[~kept] == -1.0).all()
    assert kept.sum() == np.prod([min(a, b) for a, b in zip(size, array.shape, strict=True)])


def test_sides_are_filled_up_and_reported(folder):
    data = volumes(folder, "t2", condition="t1")
    assert data.shape == (1, 8, 8, 16)
    assert "6 x 8 x 10 voxels, seen as 8 x 8 x 16" in data.describe()
    x = data.batch([0])["x"][0, 0]
    assert bool((x[0] == -1).all()) and bool((x[..., :3] == -1).all()) and bool((x[..., 13:] == -1).all())


def test_writing_a_sample_where_it_belongs(folder, tmp_path):
    """The grid, affine and header of the given scan; values in [0, 1]; background of all that was given is 0."""
    head = scan(1)
    for i in range(4):
        both = head.copy()
        both[:2] = 0
        other = scan(2)
        other[:3] = 0
        save(folder / f"p{i}" / f"p{i}-t1.nii.gz", both)
        save(folder / f"p{i}" / f"p{i}-pd.nii.gz", other)
    data = volumes(folder, "t2", condition=["t1", "pd"])
    swapped = volumes(folder, "t2", condition=["pd", "t1"])  # the first has background that the second hasn't
    assert np.array_equal(swapped.place(1).background, data.place(1).background)
    cond, place = data.given({m: Scan(folder / "p1" / f"p1-{m}.nii.gz") for m in ("pd", "t1")})
    assert list(cond) == ["t1", "pd"] and cond["t1"].shape == (1, *data.shape)
    x = data.batch([1])["x"][0] * 1.7
    out = read_volume(data.write(tmp_path / "out.nii.gz", x, place))
    assert out.array.shape == (6, 8, 10) and np.array_equal(out.affine, AFFINE)
    expected = (np.clip(intensities(scan(11)) * 1.7, -1, 1) + 1) / 2
    assert place.background[:2].all() and place.background.mean() < 0.4
    expected[place.background] = 0
    assert np.abs(out.array - expected).max() < 1e-6
    assert data.place(1).name == "p1/p1" and np.array_equal(data.place(1).background, place.background)


def test_given_scans_of_another_grid(folder, tmp_path):
    data = volumes(folder, "t2", condition="t1")
    larger = np.zeros((10, 8, 10), np.float32)
    larger[2:8] = scan(1)
    cond, place = data.given({"t1": Scan(save(tmp_path / "t1.nii.gz", larger))})
    assert cond["t1"].shape == (1, *data.shape)
    assert read_volume(data.write(tmp_path / "o.nii", cond["t1"][0], place)).array.shape == (10, 8, 10)
    with pytest.raises(BadValue, match="would lose"):
        data.given({"t1": Scan(save(tmp_path / "t1.nii.gz", scan(0, (20, 8, 10))))})


def test_geometry_comes_from_whichever_scan_has_one(folder, tmp_path):
    """An array says nothing of where it lies; the others are compared all the same."""
    data = volumes(folder, "t2", condition=["t1", "pd"])
    np.save(tmp_path / "t1.npy", scan(1))
    given = {"t1": Scan(tmp_path / "t1.npy"), "pd": Scan(folder / "p0" / "p0-pd.nii.gz")}
    cond, place = data.given(given)
    assert place.name == "t1"
    out = read_volume(data.write(tmp_path / "out.nii.gz", cond["t1"][0], place))
    assert np.array_equal(out.affine, AFFINE)
    three = volumes(folder, "t2", condition=["t1", "pd"], multiple=2)
    three.condition = ("t1", "pd", "t2")
    moved = save(tmp_path / "moved.nii", scan(5), AFFINE + np.eye(4)[[3, 0, 1, 2]])
    with pytest.raises(BadValue, match=r"moved.nii and p0-pd.nii.gz lie differently"):
        three.given({**given, "t2": Scan(moved)})
    lost = Volume(scan(5), np.where(AFFINE == 10.0, np.nan, AFFINE))
    with pytest.raises(BadValue, match="lie differently"):
        check_alike({"a": Volume(scan(5), AFFINE), "b": lost})


def test_refuses_given_scans(folder, tmp_path):
    data = volumes(folder, "t2", condition=["t1", "pd"])
    good = {m: Scan(folder / "p0" / f"p0-{m}.nii.gz") for m in ("t1", "pd")}
    with pytest.raises(BadValue, match="pd is missing"):
        data.given({"t1": good["t1"]})
    with pytest.raises(BadValue, match="unknown modality of this run 't3'"):
        data.given({**good, "t3": good["t1"]})
    for name, array, affine, words in (
        ("moved", scan(0), AFFINE + np.eye(4)[[3, 0, 1, 2]], "lie differently in space"),
        ("small", scan(0, (6, 8, 9)), AFFINE, "resample"),
        ("nan", np.where(scan(0) > 500, np.nan, scan(0)), AFFINE, "NaN"),
        ("constant", np.full((6, 8, 10), 3.0, np.float32), AFFINE, "constant"),
    ):
        with pytest.raises(BadValue, match=words):
            data.given({**good, "pd": Scan(save(tmp_path / f"{name}.nii", array, affine))})


def test_refuses_folders(folder, tmp_path):
    with pytest.raises(BadFile, match="no such folder"):
        volumes(tmp_path / "none", "t2")
    with pytest.raises(BadFile, match="is a file: scans lie in a folder"):
        volumes(folder / "p0" / "p0-t1.nii.gz", "t2")
    with pytest.raises(BadFile, match="small and capital letters differ"):
        volumes(folder, "T2", condition=["T1"])
    with pytest.raises(BadFile, match=r"no case with all of flair.*nii.gz$"):
        volumes(folder, "flair")
    with pytest.raises(BadValue, match="must differ"):
        volumes(folder, "t1", condition=["t1"])
    (folder / "p3" / "p3-t1.nii.gz").unlink()
    save(folder / "p2" / "p2-t1.nii.gz", np.zeros((6, 8, 10), np.float32))
    with pytest.raises(BadValue, match=r"2 of 4 cases can't be used: p2/p2: p2-t1.nii.gz is constant.*lacks t1"):
        volumes(folder, "t2", condition="t1")
    data = volumes(folder, "t2", condition="t1", skip_bad=True)
    assert len(data) == 2 and [r.name for r in data.refused] == ["p2/p2", "p3/p3"]
    save(folder / "p0" / "p0_t1.nii", scan(0))
    with pytest.raises(BadValue, match="t1 twice"):
        volumes(folder, "t2", condition="t1")


def test_refuses_several_shapes(folder):
    save(folder / "p0" / "p0-t1.nii.gz", scan(0, (6, 8, 8)))
    with pytest.raises(BadValue, match="several shapes"):
        volumes(folder, "t1")
    assert volumes(folder, "t1", size=(6, 8, 8)).shape == (1, 6, 8, 8)
    for size in (0, (8, 8), (8, 8, True)):
        with pytest.raises(BadValue, match="size is"):
            volumes(folder, "t1", size=size)


def test_fingerprint_sees_files_and_reading(folder):
    marks = {volumes(folder, "t2", condition=c).fingerprint() for c in ((), ("t1",), ("t1", "pd"))}
    marks.add(volumes(folder, "t2", percentiles=(0, 100)).fingerprint())
    assert volumes(folder, "t2").fingerprint() in marks
    save(folder / "p0" / "p0-t2.nii.gz", scan(99))
    marks.add(volumes(folder, "t2").fingerprint())
    assert len(marks) == 5


def test_rows_of_parts(folder):
    data = volumes(folder, "t2", condition="t1")
    _, held = split(data, 0.25, seed=3)
    whole, row = of_volumes(held, 0)
    assert whole is data
    assert torch.equal(held.batch([0])["x"], data.batch([row])["x"])
    assert of_volumes(phantoms(1, side=8)) is None


# Seen through a codec


def test_encoded_batches_are_latents():
    data, haar = phantoms(5, side=8), Haar(axes=3)
    lazy, kept = Encoded(data, haar), latents(data, haar, batch=2)
    assert lazy.shape == kept.shape == (8, 4, 4, 4)
    rows, same = lazy.batch([3, 1]), kept.batch([3, 1])
    assert torch.equal(rows["x"], same["x"])
    for name in data.kinds:
        assert torch.equal(rows["cond"][name], same["cond"][name])
        assert torch.equal(rows["cond"][name], haar.encode(data.batch([3, 1])["cond"][name]))
    assert torch.allclose(lazy.restore(rows["x"]), data.batch([3, 1])["x"], atol=1e-6)
    assert lazy.fingerprint() == data.fingerprint()


def test_conditions_of_other_channels_are_encoded_where_the_codec_takes_them():
    cond = {"mask": torch.rand(2, 3, 8, 8), "small": torch.rand(2, 1, 4, 4), "age": torch.rand(2)}
    data = TensorData(torch.rand(2, 1, 8, 8), cond)
    seen = Encoded(data, Haar(axes=2)).batch([0, 1])["cond"]
    assert seen["mask"].shape == (2, 12, 4, 4) and seen["small"].shape == (2, 1, 4, 4) and seen["age"].shape == (2,)
    learned = Autoencoder(shape=(1, 8, 8), channels=2, width=8, multipliers=(1, 1))
    assert Encoded(data, learned).batch([0])["cond"]["mask"].shape == (1, 3, 8, 8)


# Phantoms


def test_phantoms_depend_on_their_seed_alone():
    data = phantoms(3, side=12)
    assert data.shape == (1, 12, 12, 12) and list(data.kinds) == ["t1", "t2", "pd"]
    other = phantoms(2, side=12, seed=1)
    assert torch.equal(data.batch([1])["x"], other.batch([0])["x"])
    assert torch.equal(data.batch([2])["cond"]["t2"][0], phantom(2, side=12)[1:2])
    background = (data.batch([0])["x"] == -1).float().mean()
    assert 0.3 < float(background) < 0.95


def test_written_phantoms_are_found(tmp_path):
    write_phantoms(tmp_path / "s", 2, side=12)
    cases, other = find_scans(tmp_path / "s", ["t1", "flair"])
    assert list(cases) == ["case-000/case-000", "case-001/case-001"] and len(other) == 4
    volume = cases["case-001/case-001"]["t1"].read()
    assert np.abs(volume.array * 2 - 1 - phantom(1, side=12)[0].numpy()).max() < 1e-6
    assert np.allclose(volume.affine @ [5.5, 5.5, 5.5, 1], [0, 0, 0, 1])


def test_refuses_phantoms():
    for bad in ({"side": 4}, {"contrasts": 5}):
        with pytest.raises(BadValue):
            phantom(0, **bad)
    with pytest.raises(BadValue, match="target"):
        phantoms(1, target="ct")
