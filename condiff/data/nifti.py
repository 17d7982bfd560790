"""Volumes in files: NIfTI with its affine and header, and NumPy arrays."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from condiff.errors import BadFile, BadType, BadValue, require_extra
from condiff.files import replacing

NIFTI = (".nii", ".nii.gz")
ENDINGS = (*NIFTI, ".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Volume:
    """Values (D, H, W) in the order of the file, and where they lie in space.

    Args:
        array: float32.
        affine: (4, 4), from voxels to millimetres; None for arrays without.
        header: of NIfTI, kept for output; None for arrays.
    """

    array: np.ndarray
    affine: np.ndarray | None = None
    header: Any = None


def ending(path: Path) -> str | None:
    """``.nii``, ``.nii.gz``, ``.npy`` or ``.npz``; None for anything else."""
    return next((e for e in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(e)), None)


def stem(path: Path) -> str:
    """The name without its ending, ``.nii.gz`` included."""
    return path.name[: -len(ending(path) or path.suffix)] if (ending(path) or path.suffix) else path.name


def read_volume(path: str | Path, key: str | None = None) -> Volume:
    """A volume (D, H, W); axes of length 1 behind the third are dropped.

    Args:
        key: of an array in a ``.npz`` archive.

    Raises:
        BadFile: a file that is missing, damaged, or no volume.
        BadType, BadValue: complex or coloured voxels, other than three axes.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    kind = ending(path)
    if kind is None:
        raise BadFile(f"{path.name} is no volume: {', '.join(ENDINGS)} are read")
    array, affine, header = _nifti(path) if kind in NIFTI else (_numpy(path, key), None, None)
    if array.dtype.kind not in "buif":
        raise BadType(f"{path.name} holds voxels of type {array.dtype}, not real numbers")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise BadValue(f"{path.name} has shape {array.shape}: a volume has three axes")
    return Volume(np.ascontiguousarray(array, dtype=np.float32), affine, header)


def _nifti(path: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    nib = require_extra("nibabel", "volumes")
    try:
        image = nib.load(path)
        return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64), image.header.copy()
    except Exception as error:  # what nibabel, gzip and zlib raise depends on where the damage is
        raise BadFile(f"{path} can't be read as NIfTI: {type(error).__name__}: {error}") from error


def _numpy(path: Path, key: str | None) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else loaded[key or loaded.files[0]]
    except KeyError as error:
        raise BadFile(f"{path} holds no array {key!r}") from error
    except Exception as error:  # zipfile, zlib, EOF and ValueError, depending on where the damage is
        raise BadFile(f"{path} can't be read as a NumPy file without pickle: {error}") from error


def keys(path: Path) -> list[str]:
    """The names of the arrays of a ``.npz`` archive.

    Raises:
        BadFile: it can't be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return list(stored.files)
    except Exception as error:  # as above
        raise BadFile(f"{path} can't be read as a NumPy archive: {error}") from error


def write_volume(path: str | Path, array: np.ndarray, like: Volume | None = None) -> Path:
    """Write values (D, H, W) as float32, NIfTI with the affine and header of another volume, or ``.npy``.

    Without one, or where it has no affine, the affine is the identity.

    Raises:
        BadValue: another ending, other than three axes.
        BadFile: when writing fails.
    """
    path, kind = Path(path), ending(Path(path))
    if array.ndim != 3:
        raise BadValue(f"a volume has three axes, got shape {array.shape}")
    if kind not in (*NIFTI, ".npy"):
        raise BadValue(f"volumes are written as .nii, .nii.gz or .npy, got {path.name!r}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        if kind == ".npy":
            np.save(file, array)
        else:
            data = _image(array, like).to_bytes()
            file.write(gzip.compress(data, mtime=0) if kind == ".nii.gz" else data)
    return path


def _image(array: np.ndarray, like: Volume | None) -> Any:
    nib = require_extra("nibabel", "volumes")
    affine = np.eye(4) if like is None or like.affine is None else like.affine
    if like is None or like.header is None:
        return nib.Nifti1Image(array, affine)
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    header["cal_min"], header["cal_max"] = 0.0, 0.0  # of the other volume's values
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(array, affine, header)
