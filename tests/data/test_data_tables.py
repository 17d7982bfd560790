"""NumPy archives, parquet files, Hugging Face data sets, and opening any source by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from condiff.data import arrays, hub, open_data, options, parquet
from condiff.errors import BadFile, BadType, BadValue, NonFinite


def encoded(seed, size=(6, 8), format="PNG"):
    array = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format)
    return array, buffer.getvalue()


# Arrays


def test_npz_with_conditions(tmp_path):
    x = np.random.RandomState(0).randint(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=x, y=np.array([0, 1, 2, 1, 0], dtype=np.uint8), age=np.arange(5.0))
    data = arrays(tmp_path / "d.npz", x="images", cond={"label": "y", "age": "age"}, channels="last")
    assert data.shape == (3, 4, 6) and data.kinds == {"label": "label", "age": "scalar"} and len(data.classes) == 3
    batch = data.batch([3])
    torch.testing.assert_close(batch["x"][0], torch.from_numpy(x[3]).permute(2, 0, 1).float() / 127.5 - 1)
    assert batch["cond"]["label"].dtype == torch.int64 and batch["cond"]["age"].dtype == torch.float32
    assert arrays(tmp_path / "d.npz", x="images", cond=["y"], kinds={"y": "label"}).kinds == {"y": "label"}


def test_npy_and_layouts(tmp_path):
    x = np.random.RandomState(0).rand(3, 4, 5)
    np.save(tmp_path / "x.npy", x)
    assert arrays(tmp_path / "x.npy", range=(0, 1), channels="add").shape == (1, 4, 5)
    assert arrays(tmp_path / "x.npy").shape == (4, 5)
    with pytest.raises(BadValue, match="Did you mean 'first'"):
        arrays(tmp_path / "x.npy", channels="frist")
    np.save(tmp_path / "x.npy", x[:, 0])
    with pytest.raises(BadValue, match="channels='last' needs"):
        arrays(tmp_path / "x.npy", channels="last")


def test_faulty_arrays(tmp_path):
    path = tmp_path / "d.npz"
    x = np.zeros((4, 2))
    x[2, 1] = np.nan
    np.savez(path, x=x, y=np.arange(3), words=np.array(["a"] * 4))
    with pytest.raises(NonFinite, match=r"first at index \(2, 1\)"):
        arrays(path)
    with pytest.raises(BadValue, match="Did you mean 'words'"):
        arrays(path, cond=["word"])
    with pytest.raises(BadType, match="not real numbers"):
        arrays(path, x="words")
    np.savez(path, x=np.zeros((4, 2)), y=np.arange(3))
    with pytest.raises(BadValue, match="must have 4 rows"):
        arrays(path, cond=["y"])
    np.savez(path, x=np.full((4, 2), 300.0))
    with pytest.raises(BadValue, match="outside \\[-1, 1\\]: give range="):
        arrays(path)
    with pytest.raises(BadValue, match=r"range is \(low, high\)"):
        arrays(path, range=[1.0])


def test_damaged_and_pickled_files(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=np.zeros((400, 20)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadFile, match="without pickle"):
        arrays(path)
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadFile, match="pickle"):
        arrays(tmp_path / "p.npy")
    with pytest.raises(BadFile, match="no such file"):
        arrays(tmp_path / "none.npz")


# Parquet


def write_parquet(path, cells, labels=None, metadata=None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": cells} | ({} if labels is None else {"label": labels})
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet(tmp_path, as_struct):
    made = [encoded(i) for i in range(4)]
    cells = [{"bytes": b, "path": None} if as_struct else b for _, b in made]
    write_parquet(tmp_path / "a.parquet", cells[:2], [1, 0])
    write_parquet(tmp_path / "b.parquet", cells[2:], [1, 1])
    for path in (tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"]):
        data = parquet(path, label="label")
        assert (len(data), data.shape, data.classes, data.labels.tolist()) == (4, (3, 6, 8), ("0", "1"), [1, 0, 1, 1])
        torch.testing.assert_close(
            data.batch([2])["x"][0], torch.from_numpy(made[2][0]).permute(2, 0, 1).float() / 127.5 - 1
        )
    unlabelled = parquet(tmp_path / "a.parquet")
    assert unlabelled.kinds == {} and "not used: label" in unlabelled.describe()
    assert parquet(tmp_path, size=4, flip=True, channels=1).shape == (1, 4, 4)


def test_class_names_from_metadata_and_labels_out_of_range(tmp_path):
    meta = {"huggingface": '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'}
    cells = [encoded(i)[1] for i in range(3)]
    write_parquet(tmp_path / "a.parquet", cells, [1, 0, 1], meta)
    assert parquet(tmp_path / "a.parquet", label="label").classes == ("cat", "dog")
    write_parquet(tmp_path / "a.parquet", cells, [1, 0, 2], meta)
    with pytest.raises(BadValue, match=r"label 2 of row 2 does not lie in \[0, 2\)"):
        parquet(tmp_path / "a.parquet", label="label")
    write_parquet(tmp_path / "a.parquet", cells, ["x", "y", "x"])
    assert parquet(tmp_path / "a.parquet", label="label").labels.tolist() == [0, 1, 0]
    with pytest.raises(BadValue, match="'y' of row 1 is none of the classes"):
        parquet(tmp_path / "a.parquet", label="label", classes=["x"])
    write_parquet(tmp_path / "a.parquet", cells, ["x", None, "x"])
    with pytest.raises(BadValue, match="1 rows have no label, the first is row 1"):
        parquet(tmp_path / "a.parquet", label="label")


def test_faulty_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [encoded(0)[1], b"junk", None], [0, 1, 0])
    with pytest.raises(BadFile, match=r"2 of 3 pictures can't be used.*\n  row 1: .*\n  row 2: ") as caught:
        parquet(path, label="label")
    assert "NoneType" in str(caught.value)
    data = parquet(path, label="label", skip_bad=True)
    assert len(data) == 1 and data.labels.tolist() == [0]
    with pytest.raises(BadValue, match="Did you mean 'image'"):
        parquet(path, "img")
    with pytest.raises(BadFile, match="no such file"):
        parquet(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(BadFile, match="can't be read as parquet"):
        parquet(tmp_path / "bad.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadFile, match="no parquet files"):
        parquet(tmp_path / "folder")


# Hugging Face


def in_memory(images, labels):
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "note": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(
        {"picture": images, "kind": labels, "note": ["n"] * len(images)}, features=features
    )


def test_hub_with_a_dataset_in_memory(tmp_path):
    arrays_ = [encoded(i)[0] for i in range(4)]
    (tmp_path / "on_disk.png").write_bytes(encoded(3)[1])
    dataset = in_memory([*(Image.fromarray(a) for a in arrays_[:3]), str(tmp_path / "on_disk.png")], [1, 0, 0, 1])
    data = hub(dataset)
    assert (data.shape, data.classes, data.labels.tolist()) == ((3, 6, 8), ("cat", "dog"), [1, 0, 0, 1])
    for i in (0, 3):
        torch.testing.assert_close(
            data[i]["x"], torch.from_numpy(arrays_[i]).permute(2, 0, 1).float() / 127.5 - 1, rtol=0, atol=1e-6
        )
    assert hub(dataset, "picture", None, size=4).kinds == {}
    with pytest.raises(BadValue, match="Did you mean 'picture'"):
        hub(dataset, "pictures")
    with pytest.raises(BadValue, match="column"):
        hub(dataset, label="kin")
    with pytest.raises(BadValue, match="say with image="):
        hub(dataset.remove_columns("picture"))


def test_hub_names_corrupt_rows():
    import datasets

    cells = [{"bytes": encoded(0)[1], "path": None}, {"bytes": b"junk", "path": None}, None]
    dataset = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image())
    with pytest.raises(BadFile, match="2 of 3 pictures"):
        hub(dataset)
    assert len(hub(dataset, skip_bad=True)) == 1


def test_hub_reads_a_local_folder_and_says_when_it_cannot(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encoded(i)[1] for i in range(2)])
    with pytest.raises(BadFile, match="can't be loaded"):
        hub(str(tmp_path / "nowhere"))
    with pytest.raises(BadType, match=r"a name or a datasets\.Dataset"):
        hub([1, 2])


# By name


def test_open_data(tmp_path):
    assert len(open_data("digits", split="test")) == 359
    assert {"path", "size", "labels", "flip"} <= set(options("images"))
    assert {"image", "flip", "background"} <= set(options("parquet")) and "framing" not in options("parquet")
    write_parquet(tmp_path / "a.parquet", [encoded(0)[1]])
    assert open_data("parquet", path=tmp_path / "a.parquet", size=4, channels=1).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("source", "given", "match"),
    [
        ("digit", {}, "Did you mean 'digits'"),
        ("images", {"path": ".", "sise": 3}, "Did you mean 'size'"),
        ("pairs", {"degraded": "."}, "needs clean"),
        ("parquet", {"path": ".", "framing": 3}, "unknown option of parquet 'framing'"),
    ],
)
def test_open_data_refuses_unknown_words(source, given, match):
    with pytest.raises(BadValue, match=match):
        open_data(source, **given)


def test_pictures_as_conditions_and_text_as_labels(tmp_path):
    """Byte pictures beside the samples come to [-1, 1] and get the samples' layout; names are sorted into classes."""
    x = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
    names = np.array(["b", "a", "b", "a", "a", "b"])
    np.savez(tmp_path / "p.npz", x=x, mask=x[:, ::-1], label=names)
    data = arrays(tmp_path / "p.npz", cond=["mask", "label"], channels="add")
    assert data.kinds == {"mask": "map", "label": "label"} and data.classes == ("a", "b")
    assert data.labels.tolist() == [1, 0, 1, 0, 0, 1]
    mask = data.batch([1])["cond"]["mask"]
    torch.testing.assert_close(mask, torch.from_numpy(x[1:2, ::-1].copy()).float()[:, None] / 127.5 - 1)
    torch.testing.assert_close(data.restore(data.batch([2])["x"])[0, 0], torch.from_numpy(x[2]).float())


def test_series_stored_channels_first(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (4, 3, 7)).astype(np.float32)
    np.save(tmp_path / "s.npy", x)
    np.save(tmp_path / "u.npy", x[:, 0])
    data = arrays(tmp_path / "s.npy", channels="to-last")
    assert data.shape == (7, 3) and "series: 7 steps of 3 channels" in data.describe()
    np.testing.assert_array_equal(data.batch([1])["x"][0].numpy(), x[1].T)
    assert arrays(tmp_path / "u.npy", channels="add-last").shape == (7, 1)
