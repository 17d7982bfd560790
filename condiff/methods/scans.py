"""Volumes in and out of runs: scans that are given, and files with their geometry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from condiff.data import Data, Place, Scan, Volumes, find_scans, modality_of, of_volumes
from condiff.data.nifti import ENDINGS, NIFTI, ending
from condiff.errors import BadFile, BadValue, unknown
from condiff.methods.drawn import Drawing

SUFFIXES = (*NIFTI, ".npz", ".npy", "")


def read(words: Sequence[str], data: Volumes) -> tuple[dict[str, list[Tensor]], list[Place]]:
    """The conditions of one case or more, by modality, and where their samples belong.

    Args:
        words: files of one case (``t1.nii.gz``, ``case-t1.nii.gz``, ``t1=any.nii.gz``), or folders, whose cases are all
            taken.

    Raises:
        BadValue: files whose modality isn't plain, modalities that are missing, unknown or given twice; and whatever
            :meth:`condiff.data.Volumes.given` refuses.
        BadFile: what isn't there or can't be read.
    """
    cases: list[tuple[str | None, dict[str, Scan]]] = []
    single: dict[str, Scan] = {}
    for word in words:
        name, path = _named(word, data)
        if path.is_dir() and name is None:
            cases += _folder(path, data)
            continue
        name = name or _modality(path, data)
        if name in single:
            raise BadValue(f"{name} is given twice: {single[name].path} and {path}")
        single[name] = Scan(path)
    cases += [(None, single)] if single else []
    out: dict[str, list[Tensor]] = {m: [] for m in data.condition}
    places = []
    for case, scans in cases:
        cond, place = data.given(scans, case)
        places.append(place)
        for m, value in cond.items():
            out[m].append(value)
    return out, places


def _named(word: str, data: Volumes) -> tuple[str | None, Path]:
    name, equals, text = word.partition("=")
    if not equals or Path(word).exists():
        return None, Path(word)
    if name not in data.condition:
        raise unknown("modality of this run", name, data.condition)
    return name, Path(text)


def _modality(path: Path, data: Volumes) -> str:
    """What a file is of, by its name or its folder's."""
    if not path.is_file():
        raise BadFile(f"no such file: {path}")
    if ending(path) is None:
        raise BadFile(f"{path.name} is no volume: {', '.join(ENDINGS)} are read")
    said = modality_of(Path(*path.parts[-2:]), [*data.condition, data.target])
    if said is None and len(data.condition) == 1:
        return data.condition[0]
    if said is None:
        raise BadValue(f"which of {', '.join(data.condition)} is {path.name}? Write NAME={path}")
    if said[0] == data.target:
        raise BadValue(f"{path.name} is what this run makes, {data.target}: give {', '.join(data.condition)}")
    return said[0]


def _folder(path: Path, data: Volumes) -> list[tuple[str | None, dict[str, Scan]]]:
    cases, _ = find_scans(path, data.condition)
    if not cases:
        raise BadFile(f"{path} holds no {' or '.join(data.condition)}")
    return [(_case_name(case, path), scans) for case, scans in cases.items()]


def _case_name(case: str, folder: Path) -> str:
    return Path(case).name or folder.name


def check_output(out: Path, overwrite: bool) -> None:
    """
    Raises:
        BadValue: an ending that volumes aren't written with.
        BadFile: the output is there already.
    """
    if _ending(out) not in SUFFIXES:
        raise BadValue(f"--out must end in {', '.join(SUFFIXES[:-1])}, or be a folder, got {out.name!r}")
    if out.exists() and not overwrite:
        raise BadFile(f"{out} exists already: choose another --out, or say --overwrite")


def check_count(out: Path, num: int) -> None:
    """Raises :class:`BadValue` for several volumes in one NIfTI file."""
    if _ending(out) in NIFTI and num != 1:
        raise BadValue(f"{out.name} holds one volume, and {num} are made: give a folder, or a .npz")


def _ending(out: Path) -> str:
    return ending(out) or out.suffix.lower()


def write(made: Drawing, out: Path, heldout: Data, places: Sequence[Place]) -> bool:
    """Write samples as NIfTI where they belong: on the grid of what was given, else of the held-out cases in turn.

    Returns:
        False, and nothing is written, for other endings than a folder's and NIfTI's.
    """
    found = of_volumes(heldout)
    if found is None or _ending(out) not in (*NIFTI, ""):
        return False
    data, count = found[0], len(made.x)
    chosen = [places[i % len(places)] if places else _heldout_place(heldout, i) for i in range(count)]
    if _ending(out) in NIFTI:
        data.write(out, made.x[0], chosen[0])
        return True
    names = [Path(place.name).name for place in chosen]
    for i, (place, name) in enumerate(zip(chosen, names, strict=True)):
        again = f"-{i:03d}" if names.count(name) > 1 else ""
        data.write(out / f"{name}-{data.target}{again}.nii.gz", made.x[i], place)
    return True


def _heldout_place(heldout: Data, i: int) -> Place:
    found = of_volumes(heldout, i % len(heldout))
    assert found is not None
    return found[0].place(found[1])
