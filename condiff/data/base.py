"""Data sets: map-style, with batches by index, and randomness that depends on (seed, epoch, index) only.

A row is ``{"x": Tensor, "cond": {name: Tensor}}``, a batch the same with a leading dimension. Because an
augmentation is a function of the row's index and the epoch, a resumed run sees the same numbers, whatever the
number of workers.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from condiff.data.held_out import SHARE, split_indices, split_recordings
from condiff.data.ranges import Affine, check_finite, to_model_range
from condiff.data.seeded import uniform
from condiff.errors import BadType, BadValue

Indices = Sequence[int] | Tensor | range


class Refused(NamedTuple):
    """Something of a data set that was left out, and why."""

    name: str
    reason: str


class Data(ABC):
    """Base of the data sets. Subclasses fill the attributes and give :meth:`__len__`, :meth:`_rows`, :meth:`_content`.

    Attributes:
        name: what to call it.
        shape: shape of one sample.
        kinds: name -> kind of each condition (see :mod:`condiff.conditions`).
        classes: names of the classes of the condition ``label``; empty without labels.
        refused: what was left out.
        notes: other remarks for whoever looks, a line each.
        vocab: number of tokens V of samples that are ids; None for values.
        paired: whether the conditions of a row belong to its sample, which is then what they should give.
        moving: whether samples are clips (F, C, H, W), and not volumes.
        chosen: of a part that is held out, how it was chosen.
    """

    name: str = "data"
    shape: tuple[int, ...] = ()
    kinds: Mapping[str, str] = {}
    classes: tuple[str, ...] = ()
    refused: Sequence[Refused] = ()
    notes: Sequence[str] = ()
    vocab: int | None = None
    paired: bool = True
    moving: bool = False
    chosen: str = ""
    _fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        """The batch of the valid int64 indices (B,)."""

    @abstractmethod
    def _content(self, digest: Any) -> None:
        """Feed everything that defines the data to a hash."""

    @property
    @abstractmethod
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value of x that was seen; for pictures that weren't, the largest range there is."""

    @property
    def labels(self) -> Tensor | None:
        """The labels of all rows (N,), None without a condition ``label``."""
        return None

    @property
    def spans(self) -> Tensor | None:
        """Of rows that are parts of recordings: (N, 3), for each its recording, its first and its last frame there."""
        return None

    def cut(self, held_out: float = SHARE, seed: int = 0) -> tuple[Data, Data]:
        """``(training, held out)`` parts; see :mod:`condiff.data.held_out`.

        Args:
            held_out: share in (0, 1).
            seed: of which rows, where it is chance.

        Raises:
            BadValue: a share outside (0, 1), too few rows for two parts.
        """
        if self.spans is not None:
            train, held, chosen = split_recordings(self.spans, held_out, seed)
        else:
            train, held = split_indices(len(self), held_out, seed, self.labels)
            chosen = "at random" + ("" if self.labels is None else ", of each class in proportion")
        rest, part = Subset(self, train, f"{self.name}/train"), Subset(self, held, f"{self.name}/held-out")
        part.chosen = chosen
        return rest, part

    def restore(self, x: Tensor) -> Tensor:
        """Model values back in the units that the data is stored in; pictures stay in [-1, 1]."""
        return x

    def batch(self, indices: Indices, epoch: int = 0) -> dict[str, Any]:
        """Rows by index: ``{"x": (B, *shape), "cond": {name: (B, ...)}}``.

        Args:
            indices: integers in [0, len(self)), any order, repeats allowed.
            epoch: which round of augmentations.

        Raises:
            BadValue: an index out of range.
        """
        index = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices))
        if index.numel() and (index.ndim != 1 or index.dtype.is_floating_point or index.dtype == torch.bool):
            raise BadValue(f"indices must be integers of shape (B,), got {index.dtype} {tuple(index.shape)}")
        index = index.long()
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise BadValue(f"indices {int(index.min())}..{int(index.max())} do not lie in [0, {len(self)})")
        return self._rows(index, epoch)

    def example(self) -> dict[str, Tensor]:
        """Conditions of one row, (1, ...) each, for their shapes and types."""
        return self.batch([0])["cond"]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row ``i`` as epoch 0 sees it."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of a data set of {len(self)}")
        row = self.batch([i % len(self)])
        return {"x": row["x"][0], "cond": {k: v[0] for k, v in row["cond"].items()}}

    def fingerprint(self) -> str:
        """sha256 of the content and of how it is read; a resumed run checks that it is unchanged."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{type(self).__name__} {self.shape} {self.classes} {len(self)}".encode())
            self._content(digest)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def info(self) -> dict[str, Any]:
        """The facts behind :meth:`describe`, JSON-ready."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist() if self.labels is not None else []
        return {
            "name": self.name,
            "count": len(self),
            "shape": list(self.shape),
            "range": list(self.value_range),
            "conditions": dict(self.kinds),
            "classes": dict(zip(self.classes, counts, strict=False)),
            "refused": [list(r) for r in self.refused],
            "notes": [*_layout(self.shape), *self.notes],
        }

    def describe(self) -> str:
        """What was understood: how many, which shapes, which classes, the value range, what was refused and why."""
        return "\n".join(_lines(self.info()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {len(self)} x {self.shape}, conditions {dict(self.kinds)})"


def _some(items: Iterable[str], most: int = 12) -> str:
    items = list(items)
    more = f", ... {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _layout(shape: Sequence[int]) -> list[str]:
    """How networks read samples whose layout isn't plain to see."""
    if len(shape) == 2:
        return [f"read as series: {shape[0]} steps of {shape[1]} channel{'' if shape[1] == 1 else 's'}"]
    if len(shape) == 3 and shape[0] > 4:
        return [f"read as pictures: {shape[0]} channels of {shape[1]} x {shape[2]} pixels"]
    return []


def _lines(info: Mapping[str, Any]) -> list[str]:
    low, high = info["range"]
    lines = [f"{info['name']}: {info['count']} samples of shape {tuple(info['shape'])}, values {low:.4g} to {high:.4g}"]
    others = {k: v for k, v in info["conditions"].items() if not (k == "label" and info["classes"])}
    if info["classes"]:
        counts = (f"{name} ({n})" for name, n in info["classes"].items())
        lines.append(f"  label: {len(info['classes'])} classes: {_some(counts)}")
    if others:
        lines.append(f"  conditions: {_some(f'{k} ({v})' for k, v in others.items())}")
    if not info["conditions"]:
        lines.append("  no conditions")
    lines += [f"  {note}" for note in info["notes"]]
    if info["refused"]:
        lines.append(f"  refused {len(info['refused'])}:")
        lines += [f"    {name}: {reason}" for name, reason in info["refused"][:12]]
        if len(info["refused"]) > 12:
            lines.append(f"    ... {len(info['refused']) - 12} more")
    return lines


def renumbered(labels: Tensor, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """The labels (N,) of classes named ``old``, as places in ``new``.

    Raises:
        BadValue: a class that ``new`` doesn't have.
    """
    extra = [name for name in old if name not in new]
    if extra:
        raise BadValue(f"classes {extra} are none of the known ones, {list(new)}")
    return torch.tensor([list(new).index(name) for name in old])[labels]


def check_labels(labels: Tensor, classes: Sequence[str]) -> None:
    """Labels are integers in [0, number of classes).

    Raises:
        BadType, BadValue: naming the first row that isn't.
    """
    if labels.ndim != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise BadType(f"labels must be integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    wrong = torch.nonzero((labels < 0) | (labels >= len(classes))).flatten()
    if len(wrong):
        i = int(wrong[0])
        raise BadValue(
            f"{len(wrong)} labels are out of range: label {int(labels[i])} of row {i} does not lie in "
            f"[0, {len(classes)})"
        )


class TensorData(Data):
    """A data set in memory.

    Args:
        x: samples (N, ...). uint8 is read as [0, 255]; see ``range`` for the rest.
        cond: name -> values, first dimension N.
        kinds: name -> kind of the conditions whose dtype and shape don't tell it.
        classes: names of the classes; by default the numbers up to the largest label.
        range: how x becomes the model's values, see :func:`condiff.data.ranges.to_model_range`.
        flip: mirror the last axis of half of the rows, chosen anew each epoch.
        seed: of the flips.
        name: what to call it.
        refused, notes: see :class:`Data`.

    Raises:
        BadType, BadValue: lengths that differ, NaN (naming the row), values or labels out of range.
    """

    def __init__(
        self,
        x: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        kinds: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
        range: str | tuple[float, float] | None = None,
        flip: bool = False,
        seed: int = 0,
        name: str = "tensors",
        refused: Sequence[Refused] = (),
        notes: Sequence[str] = (),
    ) -> None:
        cond = dict(cond or {})
        if not isinstance(x, Tensor):
            raise BadType(f"x must be a tensor, got {type(x).__name__}")
        if x.ndim == 0 or len(x) == 0:
            raise BadValue(f"{name}: there are no samples, x has shape {tuple(x.shape)}")
        for key, value in cond.items():
            if value.ndim == 0 or len(value) != len(x):
                raise BadValue(f"{name}: condition {key!r} of shape {tuple(value.shape)} must have {len(x)} rows, as x")
            check_finite(value, f"{name}: condition {key!r}")
        self.affine: Affine = to_model_range(x, range, f"{name}: x")
        self.x, self.cond, self.flip, self.seed, self.name = x, cond, flip, seed, name
        self.shape, self.refused, self.notes = tuple(x.shape[1:]), tuple(refused), tuple(notes)
        self.kinds = {k: (kinds or {}).get(k) or infer_kind(k, v) for k, v in cond.items()}
        self.classes = tuple(str(c) for c in classes)
        if self.labels is not None:
            self.classes = self.classes or tuple(str(i) for i in torch.arange(int(self.labels.max()) + 1).tolist())
            check_labels(self.labels, self.classes)

    @property
    def labels(self) -> Tensor | None:
        return self.cond["label"] if self.kinds.get("label") == "label" else None

    def renumber(self, classes: Sequence[str]) -> None:
        """Take the classes of other data, which have to hold all of one's own; labels are renumbered to them."""
        if self.labels is not None:
            self.cond["label"] = renumbered(self.labels, self.classes, classes)
            self.classes, self._fingerprint = tuple(classes), None

    def restore(self, x: Tensor) -> Tensor:
        return self.affine.inverse(x)

    @property
    def value_range(self) -> tuple[float, float]:
        return float(self.affine(self.x.min())), float(self.affine(self.x.max()))

    def __len__(self) -> int:
        return len(self.x)

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        x = self.affine(self.x[index])
        if self.flip:
            x = flip_rows(x, uniform(self.seed, epoch, index)[:, 0] < 0.5)
        return {"x": x, "cond": {k: v[index] for k, v in self.cond.items()}}

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.affine} {self.flip} {self.seed} {sorted(self.kinds.items())}".encode())
        for key, value in (("x", self.x), *sorted(self.cond.items())):
            hash_tensor(digest, key, value)


def infer_kind(name: str, value: Tensor) -> str:
    """The kind that a condition's dtype and shape say; labels and scalars (N,), vectors (N, D), tokens, maps.

    Raises:
        BadValue: when they don't say.
    """
    floating = value.dtype.is_floating_point
    kind = {1: "scalar" if floating else "label", 2: "vector" if floating else "tokens"}.get(value.ndim)
    if kind is None and floating:
        kind = "tokens" if value.ndim == 3 else "map"
    if kind is None or value.dtype == torch.bool:
        raise BadValue(
            f"can't tell the kind of condition {name!r} {value.dtype} {tuple(value.shape)}: name it in kinds="
        )
    return kind


def hash_tensor(digest: Any, name: str, value: Tensor) -> None:
    """Feed a tensor's name, dtype, shape and values to a hash, without a copy."""
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    if value.numel():
        digest.update(value.detach().cpu().contiguous().numpy().data.cast("B"))


def flip_rows(x: Tensor, which: Tensor) -> Tensor:
    """Mirror the last axis of the rows where ``which`` (B,) is true."""
    return torch.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x.flip(-1), x)


class Subset(Data):
    """Some rows of a data set, in the given order; augmentations stay those of the original rows."""

    def __init__(self, data: Data, indices: Indices, name: str | None = None) -> None:
        index = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices)).long()
        if index.numel() == 0:
            raise BadValue(f"a subset of {data.name} without rows")
        if int(index.min()) < 0 or int(index.max()) >= len(data):
            raise BadValue(f"rows {int(index.min())}..{int(index.max())} do not lie in [0, {len(data)})")
        self.data, self.index = data, index
        self.name, self.shape, self.kinds = name or f"part of {data.name}", data.shape, data.kinds
        self.classes, self.refused, self.notes = data.classes, data.refused, data.notes
        self.paired, self.moving = data.paired, data.moving

    @property
    def labels(self) -> Tensor | None:
        return None if self.data.labels is None else self.data.labels[self.index]

    @property
    def spans(self) -> Tensor | None:
        return None if self.data.spans is None else self.data.spans[self.index]

    def restore(self, x: Tensor) -> Tensor:
        return self.data.restore(x)

    @property
    def value_range(self) -> tuple[float, float]:
        return self.data.value_range

    def __len__(self) -> int:
        return len(self.index)

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        return self.data._rows(self.index[index], epoch)

    def _content(self, digest: Any) -> None:
        digest.update(self.data.fingerprint().encode())
        hash_tensor(digest, "rows", self.index)
