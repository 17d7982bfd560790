"""Tables: NumPy archives, parquet files, and Hugging Face data sets."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.data.base import TensorData
from condiff.data.folders import _classes
from condiff.data.picture import Framing, as_size
from condiff.data.pictures import Item, Pictures
from condiff.data.ranges import to_model_range
from condiff.errors import BadFile, BadType, BadValue, require_extra, unknown

LAYOUTS = ("first", "last", "add", "to-last", "add-last")


def arrays(
    path: str | Path,
    x: str = "x",
    *,
    cond: Sequence[str] | Mapping[str, str] = (),
    kinds: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    range: str | Sequence[float] | None = None,
    channels: str = "first",
    flip: bool = False,
    seed: int = 0,
) -> TensorData:
    """A ``.npz`` archive, or a ``.npy`` array of samples without conditions.

    Args:
        path: the file. Pickled objects in it are refused.
        x: key of the samples, first dimension N.
        cond: keys of the conditions, or ``{condition name: key}``. Text under ``label`` names classes; bytes with two
            axes or more are pictures (kind ``"map"``), brought to [-1, 1] and laid out as ``x`` is.
        kinds: name -> kind of the conditions, where dtype and shape don't tell.
        classes: names of the classes of a condition ``label``.
        range: what becomes [-1, 1]: see :func:`condiff.data.ranges.to_model_range`.
        channels: ``"first"``: as they are; ``"last"``: the last axis becomes the first; ``"add"``: a channel axis of
            size 1 is put in front; ``"to-last"`` and ``"add-last"``: the same for series, whose samples are (L, C):
            stored (N, C, L), or (N, L) with one value a step.
        flip, seed: see :class:`condiff.data.TensorData`.

    Raises:
        BadFile: missing, truncated or pickled files.
        BadValue, BadType, NonFinite: an unknown key (with the nearest), other lengths, values outside the range, NaN.
    """
    path = Path(path)
    keys = [cond] if isinstance(cond, str) else cond
    names = dict(keys) if isinstance(keys, Mapping) else {key: key for key in keys}
    stored = _load(path, x)
    for key in (x, *names.values()):
        if key not in stored:
            raise unknown(f"array of {path.name}", key, stored)
    classes, conditions, kinds = _conditions({n: stored[k] for n, k in names.items()}, path.name, kinds, classes)
    unused = [f"{k} {v.shape}" for k, v in stored.items() if k not in (x, *names.values())]
    pictures = [n for n in conditions if kinds.get(n) in ("map", "endpoint")]
    return TensorData(
        _move_channels(_tensor(stored[x], f"{path.name}: {x}"), channels),
        {n: _move_channels(v, channels) if n in pictures else v for n, v in conditions.items()},
        kinds=kinds,
        classes=classes,
        range=range if range is None or isinstance(range, str) else _interval(range),
        flip=flip,
        seed=seed,
        name=path.name,
        notes=[f"not used: {', '.join(unused)}"] if unused else (),
    )


def _interval(range: Sequence[float]) -> tuple[float, float]:
    if len(range) != 2:
        raise BadValue(f"range is (low, high), got {range}")
    return float(range[0]), float(range[1])


def _load(path: Path, x: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    try:
        with open(path, "rb") as file:  # numpy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            return {x: loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except Exception as error:  # zipfile, zlib, EOF and ValueError, depending on where the damage is
        if "pickle" in str(error):  # numpy says so of whatever it doesn't know
            raise BadFile(f"{path} is no .npy or .npz file, or holds pickled objects, which are refused") from error
        raise BadFile(f"{path} can't be read as a NumPy file without pickle: {error}") from error


def _tensor(array: np.ndarray, what: str) -> Tensor:
    """Any real array; floats become float32, integers other than uint8 int64."""
    if array.dtype.kind not in "buif":
        raise BadType(f"{what} holds {array.dtype}, not real numbers")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype.kind in "ui" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array))


def _conditions(
    stored: Mapping[str, np.ndarray], file: str, kinds: Mapping[str, str] | None, classes: Sequence[str]
) -> tuple[Sequence[str], dict[str, Tensor], dict[str, str]]:
    """``(classes, values, kinds)`` of the conditions, as tensors."""
    out, known = {}, dict(kinds or {})
    for name, array in stored.items():
        what = f"{file}: {name}"
        if name == "label" and array.dtype.kind in "US":
            if array.ndim != 1:
                raise BadType(f"{what}: names of classes must have shape (N,), got {array.shape}")
            classes, out[name] = _named(array.astype(str).tolist(), classes, file)
        elif array.dtype == np.uint8 and (array.ndim > 2 or known.get(name) in ("map", "endpoint")):
            pixels = _tensor(array, what)
            known.setdefault(name, "map")
            out[name] = to_model_range(pixels, None, what)(pixels)
        else:
            out[name] = _condition(array, what)
    return classes, out, known


def _condition(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind in "US":
        raise BadType(f'{what} holds text, which only a condition named label may: give it as {{"label": ...}}')
    tensor = _tensor(array, what)
    return tensor.long() if tensor.dtype == torch.uint8 else tensor


def _move_channels(x: Tensor, channels: str) -> Tensor:
    if channels not in LAYOUTS:
        raise unknown("channel layout", channels, LAYOUTS)
    if channels in ("add", "add-last"):
        return x.unsqueeze(1 if channels == "add" else -1)
    if channels != "first":
        if x.ndim < 3:
            raise BadValue(f"channels={channels!r} needs samples with axes beside the channels, got {tuple(x.shape)}")
        return (x.movedim(-1, 1) if channels == "last" else x.movedim(1, -1)).contiguous()
    return x


def parquet(
    path: str | Path | Sequence[str | Path],
    image: str = "image",
    label: str | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
    check: bool = True,
    cache: int = 512,
    seed: int = 0,
    **framing: Any,
) -> Pictures:
    """Pictures in parquet files: a column of encoded bytes, or of ``{"bytes": ...}`` as Hugging Face writes them.

    Args:
        path: one file, several, or a folder of them.
        image: the column of pictures.
        label: the column of labels, integers or names; None: no labels.
        size: as in :func:`images`.
        classes: names of the classes; by default those that the file's metadata give, else what the column holds.
        framing: the other fields of :class:`condiff.data.Framing`.
        skip_bad, check, cache, seed: see :class:`condiff.data.Pictures`.

    Raises:
        BadFile: missing or damaged files, corrupt pictures.
        BadValue: an unknown column (with the nearest), labels out of range or missing.
    """
    table, name = _read_parquet(path)
    for column in (image, label):
        if column is not None and column not in table.column_names:
            raise unknown(f"column of {name}", column, table.column_names)
    pictures = table.column(image)
    items = [Item(f"row {i}", functools.partial(_cell_bytes, pictures, i)) for i in np.arange(len(pictures)).tolist()]
    values = None if label is None else table.column(label).to_pylist()
    classes = classes or (() if label is None else _named_in_metadata(table.schema, label))
    frame = Framing(size=as_size(size), **framing)
    data = _pictures(items, values, classes, frame, name, skip_bad, check, cache, seed)
    unused = [column for column in table.column_names if column not in (image, label)]
    data.notes = [f"not used: {', '.join(unused)}"] if unused else ()
    return data


def _read_parquet(path: Any) -> tuple[Any, str]:
    module = require_extra("pyarrow.parquet", "data")
    paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    files = [f for p in paths for f in (sorted(p.rglob("*.parquet")) if p.is_dir() else [p])]
    if not files:
        raise BadFile(f"no parquet files in {', '.join(map(str, paths))}")
    for file in files:
        if not file.is_file():
            raise BadFile(f"no such file: {file}")
    arrow = require_extra("pyarrow", "data")
    try:
        return arrow.concat_tables([module.read_table(f) for f in files]), files[0].name if len(files) == 1 else paths[
            0
        ].name
    except arrow.ArrowException as error:
        raise BadFile(f"{', '.join(map(str, files[:3]))} can't be read as parquet: {error}") from error


def _cell_bytes(column: Any, i: int) -> bytes:
    value = column[i].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise BadFile(f"row {i}: not a readable picture (holds {type(value).__name__}, not bytes)")
    return value


def _named_in_metadata(schema: Any, label: str) -> tuple[str, ...]:
    """Class names that Hugging Face's metadata of a parquet file give."""
    raw = (schema.metadata or {}).get(b"huggingface")
    feature = json.loads(raw)["info"]["features"].get(label, {}) if raw else {}
    return tuple(feature.get("names") or ())


def _pictures(
    items: Sequence[Item],
    values: Sequence[Any] | None,
    classes: Sequence[str],
    framing: Framing,
    name: str,
    skip_bad: bool,
    check: bool,
    cache: int,
    seed: int,
) -> Pictures:
    """Pictures with integer or named labels."""
    labelled: dict[str, Tensor] = {}
    if values is not None:
        missing = [i for i, v in enumerate(values) if v is None]
        if missing:
            raise BadValue(f"{name}: {len(missing)} rows have no label, the first is row {missing[0]}")
        integers = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        if integers and classes:
            labelled = {"label": torch.tensor(values)}
        else:
            classes, labelled["label"] = _named(values, classes, name)
    return Pictures(
        {"x": items},
        framing,
        cond=labelled,
        kinds={k: "label" for k in labelled},
        classes=classes,
        skip_bad=skip_bad,
        check=check,
        cache=cache,
        seed=seed,
        name=name,
    )


def _named(values: Sequence[Any], classes: Sequence[str], name: str) -> tuple[tuple[str, ...], Tensor]:
    words = [str(v) for v in values]
    if not classes:
        found, y = _classes(words)
        return found, y if y is not None else torch.empty(0, dtype=torch.long)
    index = {c: i for i, c in enumerate(classes)}
    for i, word in enumerate(words):
        if word not in index:
            raise BadValue(f"{name}: label {word!r} of row {i} is none of the classes {list(classes)}")
    return tuple(classes), torch.tensor([index[w] for w in words])


def hub(
    dataset: Any,
    image: str | None = None,
    label: str | None = "auto",
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    check: bool = True,
    cache: int = 512,
    seed: int = 0,
    **framing: Any,
) -> Pictures:
    """A Hugging Face data set of pictures.

    Args:
        dataset: its name (or a local folder that ``datasets.load_dataset`` reads), or a ``datasets.Dataset``.
        image: the column of pictures; None when there is only one.
        label: the column of labels; ``"auto"``: the only one of class labels if there is one; None: no labels.
        config, split, revision: what to load of a named data set.
        size, skip_bad, check, cache, seed, framing: as :func:`parquet`.

    Raises:
        BadValue: no column, or several, that could be meant; unknown columns (with the nearest).
        BadFile: a data set that can't be loaded.
    """
    datasets = require_extra("datasets", "hf")
    name = (
        dataset
        if isinstance(dataset, str)
        else (getattr(dataset, "info", None) and dataset.info.dataset_name) or "dataset"
    )
    if isinstance(dataset, str):
        try:
            dataset = datasets.load_dataset(dataset, config, split=split, revision=revision)
        except Exception as error:  # whatever the network, the hub and the file formats raise
            raise BadFile(f"the data set {name!r} can't be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(dataset, datasets.Dataset):
        raise BadType(f"hub() needs a name or a datasets.Dataset, got {type(dataset).__name__}")
    image = _column(dataset, image, datasets.Image, "image")
    if label == "auto":
        found = [k for k, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)]
        label = found[0] if len(found) == 1 else None
    if label is not None and label not in dataset.features:
        raise unknown(f"column of {name}", label, dataset.features)
    classes = tuple(getattr(dataset.features[label], "names", ())) if label is not None else ()
    encoded = dataset.cast_column(image, datasets.Image(decode=False)).with_format(None)
    items = [
        Item(f"row {i}", functools.partial(_hub_bytes, encoded, image, i)) for i in np.arange(len(encoded)).tolist()
    ]
    values = None if label is None else list(encoded[label])
    return _pictures(items, values, classes, Framing(size=as_size(size), **framing), name, skip_bad, check, cache, seed)


def _column(dataset: Any, given: str | None, kind: type, what: str) -> str:
    if given is not None:
        if given not in dataset.features:
            raise unknown(f"column of {what}s", given, dataset.features)
        return given
    found = [k for k, f in dataset.features.items() if isinstance(f, kind)]
    if len(found) != 1:
        raise BadValue(f"say with {what}= which of the columns {list(dataset.features)} holds the {what}s; {found} do")
    return found[0]


def _hub_bytes(dataset: Any, column: str, i: int) -> bytes:
    cell = dataset[i][column]
    if cell is None:
        raise BadFile(f"row {i}: not a readable picture (empty)")
    return cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
