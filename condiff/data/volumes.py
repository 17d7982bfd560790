"""Folders of scans: one volume per case and modality, one of which is made from the others.

Three ways of naming are understood, mixed as they come: ``case/case-t1.nii.gz`` (the modality ends the name, after
``-``, ``_`` or ``.``), ``case/t1.nii.gz`` and ``t1/case.nii.gz``; and ``case.npz`` archives with an array per modality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from condiff.data import nifti
from condiff.data.base import Data, Refused, Subset
from condiff.data.nifti import Volume, read_volume, write_volume
from condiff.errors import BadFile, BadValue, unknown
from condiff.files import sha256

BACKGROUND = -1.0  # the lowest value of every scan
SAME = 1e-3  # millimetres that affines of one case may differ by
MOST_LOST = 0.2  # share of voxels, background apart, that may be cut off


class Scan(NamedTuple):
    """A file, and in an archive the array."""

    path: Path
    key: str | None = None

    def read(self) -> Volume:
        return read_volume(self.path, self.key)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a made volume belongs: the grid, affine and header of a given one, and what is background in all given.

    Args:
        name: of the case.
        like: the volume whose grid, affine and header it has.
        background: (D, H, W), on that grid; None where there is none.
    """

    name: str
    like: Volume
    background: np.ndarray | None = None


def intensities(array: np.ndarray, percentiles: Sequence[float] = (0.1, 99.9), name: str = "volume") -> np.ndarray:
    """Clipped at two percentiles of its own, and these brought to -1 and 1.

    Raises:
        BadValue: NaN or infinity; a volume that is constant between the percentiles.
    """
    if not np.isfinite(array).all():
        raise BadValue(f"{name} holds NaN or infinity in {int((~np.isfinite(array)).sum())} voxels")
    low, high = (np.float32(v) for v in np.percentile(array, percentiles))
    if not low < high:
        raise BadValue(f"{name} is constant ({low:g}) between its percentiles {tuple(percentiles)}")
    return (np.clip(array.astype(np.float32), low, high) - low) / (high - low) * np.float32(2.0) - np.float32(1.0)


def centred(array: np.ndarray, size: Sequence[int], fill: float = BACKGROUND) -> np.ndarray:
    """Cut, or filled up, about the middle of each axis; ``centred(centred(a, size), a.shape)`` takes a filling off."""
    for axis, (have, want) in enumerate(zip(array.shape, size, strict=True)):
        before = abs(want - have) // 2
        if want < have:
            array = np.take(array, range(before, before + want), axis)
        elif want > have:
            pad = [(before, want - have - before) if i == axis else (0, 0) for i in range(array.ndim)]
            array = np.pad(array, pad, constant_values=fill)
    return array


class Volumes(Data):
    """Scans (1, D, H, W) in [-1, 1] by case, with the other modalities as conditions; made by :func:`volumes`.

    Args:
        cases: name of the case -> modality -> scan.
        target: the modality that is to be made.
        condition: those that it is made from.
        size: sides that every scan is cut or filled up to.
        percentiles: see :func:`intensities`.
        cache: megabytes of scans to keep in memory.
    """

    def __init__(
        self,
        cases: Mapping[str, Mapping[str, Scan]],
        target: str,
        condition: Sequence[str],
        size: Sequence[int],
        *,
        percentiles: Sequence[float] = (0.1, 99.9),
        name: str = "volumes",
        refused: Sequence[Refused] = (),
        notes: Sequence[str] = (),
        cache: int = 2048,
    ) -> None:
        self.cases, self.target, self.condition = dict(cases), target, tuple(condition)
        self.percentiles, self.name = tuple(percentiles), name
        self.shape, self.kinds = (1, *size), {c: "map" for c in self.condition}
        self.refused, self.notes = tuple(refused), tuple(notes)
        self._order, self._kept = list(self.cases), {}
        self._budget = cache * 2**20

    def __len__(self) -> int:
        return len(self._order)

    @property
    def value_range(self) -> tuple[float, float]:
        return -1.0, 1.0

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        cases = [self._order[i] for i in index.tolist()]
        stacked = {m: [self._scan(case, m) for case in cases] for m in (self.target, *self.condition)}
        rows = {m: torch.stack(v) if v else torch.empty(0, *self.shape) for m, v in stacked.items()}
        return {"x": rows.pop(self.target), "cond": rows}

    def _scan(self, case: str, modality: str) -> Tensor:
        if (case, modality) in self._kept:
            return self._kept[case, modality]
        scan = self.cases[case][modality]
        tensor = torch.from_numpy(self.fitted(scan.read().array, scan.path.name))[None]
        if tensor.nbytes <= self._budget:
            self._budget -= tensor.nbytes
            self._kept[case, modality] = tensor
        return tensor

    def fitted(self, array: np.ndarray, name: str) -> np.ndarray:
        """A scan as the model sees it: its intensities, cut or filled up to the data's sides.

        Raises:
            BadValue: NaN, a constant scan, or a larger one that would lose more than a fifth of its voxels, background
                apart.
        """
        full = intensities(array, self.percentiles, name)
        out = centred(full, self.shape[1:])
        lost = float((centred(out, full.shape) != full).mean())  # what was background is filled in again
        if lost > MOST_LOST:
            raise BadValue(
                f"{name} of {full.shape} voxels would lose {lost:.0%} of them when it is cut to {self.shape[1:]}: "
                "resample it, or train at a larger size"
            )
        return out

    def place(self, i: int) -> Place:
        """Where a sample made from the conditions of row ``i`` belongs."""
        case = self._order[i]
        scans = {m: self.cases[case][m].read() for m in (self.condition or (self.target,))}
        return Place(case, located(scans), self._background(scans) if self.condition else None)

    def given(self, scans: Mapping[str, Scan], name: str | None = None) -> tuple[dict[str, Tensor], Place]:
        """The conditions of one sample, (1, 1, D, H, W) each, from scans of one case by modality.

        Raises:
            BadValue: an unknown modality, a missing one, other grids or affines than each other's, NaN, constant scans.
            BadFile: files that can't be read.
        """
        for modality in scans:
            if modality not in self.condition:
                raise unknown("modality of this run", modality, self.condition)
        missing = [m for m in self.condition if m not in scans]
        if missing:
            raise BadValue(
                f"this run makes {self.target} from {', '.join(self.condition)}: {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing"
            )
        read = {m: scans[m].read() for m in self.condition}
        check_alike({scans[m].path.name: volume for m, volume in read.items()})
        cond = {m: torch.from_numpy(self.fitted(v.array, scans[m].path.name))[None, None] for m, v in read.items()}
        return cond, Place(name or nifti.stem(scans[self.condition[0]].path), located(read), self._background(read))

    def _background(self, volumes: Mapping[str, Volume]) -> np.ndarray:
        """Where every scan has its lowest value."""
        lowest = [intensities(v.array, self.percentiles) == BACKGROUND for v in volumes.values()]
        return np.logical_and.reduce(lowest)

    def write(self, path: str | Path, x: Tensor, place: Place) -> Path:
        """Write a sample (1, D, H, W), clipped to [-1, 1], as a volume with values in [0, 1] on the grid of its place.

        What is background in everything that was given, and what the model doesn't see of that grid, is 0.
        """
        array = centred(x[0].clamp(-1.0, 1.0).cpu().numpy(), place.like.array.shape)
        if place.background is not None:
            array = np.where(place.background, BACKGROUND, array)
        return write_volume(path, (array + 1.0) / 2.0, place.like)

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.target} {self.condition} {self.percentiles}".encode())
        for case, scans in self.cases.items():
            for modality in (self.target, *self.condition):
                scan = scans[modality]
                digest.update(f"{case} {modality} {scan.key} {sha256(scan.path)}".encode())


def located(volumes: Mapping[str, Volume]) -> Volume:
    """The first that says where it lies in space (arrays don't), else the first."""
    return next((v for v in volumes.values() if v.affine is not None), next(iter(volumes.values())))


def check_alike(volumes: Mapping[str, Volume]) -> None:
    """Raises :class:`BadValue` unless all have the same shape, and the same affine where they have one."""
    (first, one), *others = volumes.items()
    for name, other in others:
        if other.array.shape != one.array.shape:
            raise BadValue(f"{name} has {other.array.shape} voxels and {first} {one.array.shape}: resample one of them")
    affines = [(name, volume.affine) for name, volume in volumes.items() if volume.affine is not None]
    for name, affine in affines[1:]:
        first, reference = affines[0]
        gap = float(np.abs(affine - reference).max())
        if not gap <= SAME:  # nor where one isn't a number
            raise BadValue(
                f"{name} and {first} lie differently in space (their affines differ by up to {gap:.3g}): register and "
                "resample one of them"
            )


def of_volumes(data: Data, row: int = 0) -> tuple[Volumes, int] | None:
    """The :class:`Volumes` that a data set is (a part of), and the row there of its ``row``; None for other data."""
    while isinstance(data, Subset):
        data, row = data.data, int(data.index[row])
    return (data, row) if isinstance(data, Volumes) else None


def modality_of(path: Path, names: Sequence[str]) -> tuple[str, str] | None:
    """``(modality, case)`` of a relative path, if it says one of the names; see this module's description."""
    stem, parent = nifti.stem(path), path.parent.as_posix()
    if stem in names:
        return stem, parent
    for name in sorted(names, key=len, reverse=True):
        if stem.endswith(name) and len(stem) > len(name) + 1 and stem[-len(name) - 1] in "-_.":
            return name, stem[: -len(name) - 1] if parent == "." else f"{parent}/{stem[: -len(name) - 1]}"
    for i, part in enumerate(path.parts[:-1]):
        if part in names:
            return part, "/".join([*path.parts[:i], *path.parts[i + 1 : -1], stem])
    return None


def find_scans(root: Path, names: Sequence[str]) -> tuple[dict[str, dict[str, Scan]], list[Path]]:
    """Scans of the named modalities by case, and the files that are of none.

    Raises:
        BadFile: no such folder.
        BadValue: two files for one modality of one case.
    """
    if not root.is_dir():
        raise BadFile(f"{root} is a file: scans lie in a folder" if root.exists() else f"no such folder: {root}")
    cases: dict[str, dict[str, Scan]] = {}
    other: list[Path] = []
    for path in sorted(p for p in root.rglob("*") if nifti.ending(p) and not p.name.startswith(".")):
        relative = path.relative_to(root)
        found: list[tuple[str, str, Scan]] = []
        if nifti.ending(path) == ".npz":
            case = (relative.parent / nifti.stem(path)).as_posix()
            found = [(m, case, Scan(path, m)) for m in nifti.keys(path) if m in names]
        elif (said := modality_of(relative, names)) is not None:
            found = [(*said, Scan(path))]
        if not found:
            other.append(relative)
        for modality, case, scan in found:
            if modality in cases.setdefault(case, {}):
                raise BadValue(f"{case} has {modality} twice: {cases[case][modality].path.name} and {path.name}")
            cases[case][modality] = scan
    return cases, other


def volumes(
    path: str | Path,
    target: str,
    *,
    condition: str | Sequence[str] = (),
    size: int | Sequence[int] | None = None,
    multiple: int = 8,
    percentiles: Sequence[float] = (0.1, 99.9),
    skip_bad: bool = False,
    cache: int = 2048,
) -> Volumes:
    """A folder of scans: NIfTI (``.nii``, ``.nii.gz``), ``.npy``, or ``.npz`` with an array per modality.

    Every scan is read once, so that what can't be used is known before training begins.

    Args:
        path: the folder, searched with its subfolders; see this module's description for names.
        target: the modality that is to be made.
        condition: those that it is made from, in any order; none for a model of the target alone.
        size: voxels along each axis that scans are cut or filled up to, about their middle; by default their own
            sides, filled up to a multiple.
        multiple: what the default sides are multiples of.
        percentiles: of each scan, which become -1 and 1; what lies beyond is clipped.
        skip_bad: leave out cases that can't be used instead of stopping at them.
        cache: megabytes of scans to keep in memory.

    Raises:
        BadFile: no such folder, no scans of the target in it, files that can't be read.
        BadValue: cases that lack a condition (named), scans of one case with other grids or affines, NaN, constant
            scans, several shapes without ``size``.
    """
    condition = [condition] if isinstance(condition, str) else list(condition)
    root, wanted = Path(path), [target, *condition]
    if len(set(wanted)) < len(wanted):
        raise BadValue(f"the target and the conditions must differ, got {target} from {', '.join(condition)}")
    found, other = find_scans(root, wanted)
    cases, refused, shapes = {}, [], []
    for case, scans in found.items():
        reason = _problem(scans, wanted, percentiles)
        if isinstance(reason, str):
            refused.append(Refused(case, reason))
        else:
            cases[case] = scans
            shapes.append(reason)
    if not cases:
        raise BadFile(f"{root} holds no case with all of {', '.join(wanted)}{_why(refused, other, wanted)}")
    if refused and not skip_bad:
        raise BadValue(f"{len(refused)} of {len(found)} cases can't be used{_why(refused)}; --skip-bad leaves them out")
    sides = _size(size, sorted(set(shapes)), multiple)
    notes = [] if not other else [f"not used: {len(other)} volumes, such as {other[0]}"]
    notes += [f"{' x '.join(map(str, s))} voxels, seen as {' x '.join(map(str, sides))}" for s in sorted(set(shapes))]
    return Volumes(
        cases,
        target,
        condition,
        sides,
        percentiles=percentiles,
        name=root.name,
        refused=refused,
        notes=notes,
        cache=cache,
    )


def _problem(scans: Mapping[str, Scan], wanted: Sequence[str], percentiles: Sequence[float]) -> str | tuple[int, ...]:
    """Why a case can't be used, or the shape of its scans."""
    missing = [m for m in wanted if m not in scans]
    if missing:
        return f"lacks {', '.join(missing)}"
    try:
        read = {scans[m].path.name if scans[m].key is None else m: scans[m].read() for m in wanted}
        check_alike(read)
        for name, volume in read.items():
            intensities(volume.array, percentiles, name)
    except (BadValue, BadFile, TypeError) as error:
        return str(error)
    return next(iter(read.values())).array.shape


def _why(refused: Sequence[Refused], other: Sequence[Path] = (), wanted: Sequence[str] = ()) -> str:
    if refused:
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        return ": " + "; ".join(f"{r.name}: {r.reason}" for r in refused[:3]) + more
    small = [name.lower() for name in wanted]
    case = "; small and capital letters differ" if any(modality_of(Path(str(p).lower()), small) for p in other) else ""
    return f": it has {len(other)} other volumes, such as {other[0]}{case}" if other else ""


def _size(size: int | Sequence[int] | None, shapes: Sequence[tuple[int, ...]], multiple: int) -> tuple[int, ...]:
    if size is None:
        if len(shapes) > 1:
            raise BadValue(
                f"the scans have several shapes, {list(shapes)}: give size=, the sides to bring them to (--size N, "
                "--option size=[D,H,W])"
            )
        return tuple(math.ceil(n / multiple) * multiple for n in shapes[0])
    sides = (size,) * 3 if isinstance(size, int) else tuple(size)
    if len(sides) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sides):
        raise BadValue(f"size is one number of voxels or three, got {size!r}")
    return sides
