"""Data sets of encoded pictures, wherever their bytes come from: checked once, decoded when needed.

Opening decodes every picture once (unless ``check=False``): what is corrupt is named and counted before an hour
of training, sizes and channels are known, and as many decoded pictures as fit into ``cache`` megabytes stay
in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from condiff.data.base import Data, Refused, check_labels, flip_rows, hash_tensor, renumbered
from condiff.data.picture import Framing, cut, decode, hw, is_grey, resize, to_array, to_mode
from condiff.data.seeded import uniform
from condiff.errors import BadFile, BadValue

Read = Callable[[], bytes]


class Item(NamedTuple):
    """One encoded picture: what to call it, and how to get its bytes."""

    name: str
    read: Read


class _Checked(NamedTuple):
    name: str
    digest: str = ""
    size: tuple[int, int] = (0, 0)
    grey: bool = True
    error: str = ""


class Pictures(Data):
    """Pictures as a data set; made by :func:`images`, :func:`pairs`, :func:`parquet` and :func:`hub`.

    Args:
        views: view name -> one source per row; the view ``"x"`` is the sample, others are conditions that are
            framed, cut and mirrored exactly like it.
        framing: how pictures become arrays.
        cond: other conditions, first dimension N.
        kinds: name -> kind of all conditions.
        classes: names of the classes of ``label``.
        skip_bad: leave corrupt pictures out (they are listed in ``refused``) instead of raising.
        check: decode everything once now. Without it ``framing.size`` and ``framing.channels`` are needed, and
            a corrupt picture raises when it is read.
        cache: megabytes of decoded pictures to keep in memory.
        seed: of random crops and flips.

    Raises:
        BadValue: no pictures; several sizes without ``size``.
        BadFile: corrupt pictures without ``skip_bad``, naming and counting them; all of them corrupt.
    """

    def __init__(
        self,
        views: Mapping[str, Sequence[Item]],
        framing: Framing,
        *,
        cond: Mapping[str, Tensor] | None = None,
        kinds: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
        refused: Sequence[Refused] = (),
        skip_bad: bool = False,
        check: bool = True,
        cache: int = 512,
        seed: int = 0,
        name: str = "pictures",
    ) -> None:
        self.name, self.seed, self.kinds, self.classes = name, seed, dict(kinds or {}), tuple(classes)
        self.views, self.cond, self.refused = {k: list(v) for k, v in views.items()}, dict(cond or {}), list(refused)
        if not self.views["x"]:
            raise BadValue(f"{name}: there are no pictures")
        if self.labels is not None:
            check_labels(self.labels, self.classes)
        self._digests: list[str] = []
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._whole: dict[str, Tensor] = {}
        self._budget = cache * 2**20
        self._range = (np.inf, -np.inf)
        if check:
            framing = self._check_all(framing, skip_bad)
        if framing.size is None or framing.channels is None:
            raise BadValue(f"{name}: without check= the arguments size= and channels= are needed")
        self.framing, self.shape = framing, (framing.channels, *framing.size)
        if check:
            self._fill()

    # Opening

    def _check_all(self, framing: Framing, skip_bad: bool) -> Framing:
        """Decode every picture once; drop or refuse what can't be used; work out channels and size."""
        columns = [_parallel(lambda item: _check_one(item, framing), items) for items in self.views.values()]
        rows = list(zip(*columns, strict=True))
        bad = [next(filter(None, (_why(c, row[0]) for c in row)), None) for row in rows]
        self._refuse([b for b in bad if b], len(rows), skip_bad)
        good = [i for i, b in enumerate(bad) if not b]
        self.views = {k: [v[i] for i in good] for k, v in self.views.items()}
        self.cond = {k: v[good] for k, v in self.cond.items()}
        checked = [c for i in good for c in rows[i]]
        self._digests = [c.digest for c in checked]
        channels = framing.channels or (1 if all(c.grey for c in checked) else 3)
        return replace(framing, channels=channels, size=framing.size or self._one_size([rows[i][0] for i in good]))

    def _refuse(self, bad: Sequence[Refused], total: int, skip_bad: bool) -> None:
        if bad and (not skip_bad or len(bad) == total):
            listed = "".join(f"\n  {name}: {reason}" for name, reason in bad[:12]) + (
                "\n  ..." if len(bad) > 12 else ""
            )
            hint = "; skip_bad=True (--skip-bad) leaves them out" if len(bad) < total else ""
            raise BadFile(f"{self.name}: {len(bad)} of {total} pictures can't be used{hint}:{listed}")
        self.refused = [*self.refused, *bad]

    def _one_size(self, checked: Sequence[_Checked]) -> tuple[int, int]:
        sizes = sorted({c.size for c in checked})
        if len(sizes) > 1:
            raise BadValue(
                f"{self.name}: pictures of {len(sizes)} sizes (height, width), {sizes[0]} to {sizes[-1]}: "
                "give size= (--size)"
            )
        return sizes[0]

    def _fill(self) -> None:
        """Keep decoded pictures while the budget lasts, and note the range of their values."""
        for i in range(len(self)):
            arrays = self._decode_row(i)
            low, high = (float(_scaled(a, arrays["x"])) for a in (arrays["x"].min(), arrays["x"].max()))
            self._range = (min(self._range[0], low), max(self._range[1], high))
            self._budget -= sum(a.nbytes for a in arrays.values())
            if self._budget < 0:
                return
            self._kept.update({(view, i): a for view, a in arrays.items()})
        if self.framing.crop != "random" and len({a.dtype for a in self._kept.values()}) == 1:
            wide = np.uint8 if self._kept["x", 0].dtype == np.uint8 else np.int32  # torch has no arithmetic on uint16
            for view in self.views:
                rows = [self._kept.pop((view, i)) for i in range(len(self))]
                self._whole[view] = torch.from_numpy(np.stack(rows).astype(wide))

    # Reading

    def _decode_row(self, i: int) -> dict[str, np.ndarray]:
        """All views of a row, scaled alike and not yet cut at random."""
        images = {}
        for view, items in self.views.items():
            name, read = items[i]
            images[view] = to_mode(decode(read(), name), self.framing, name)
        size = hw(images["x"])
        same = {k: v if hw(v) == size else resize(v, size, self.framing.filter) for k, v in images.items()}
        return {view: to_array(image, self.framing) for view, image in same.items()}

    def _row(self, i: int) -> dict[str, np.ndarray]:
        if ("x", i) in self._kept:
            return {view: self._kept[view, i] for view in self.views}
        return self._decode_row(i)

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        draws = uniform(self.seed, epoch, index, 3)
        views = {k: v[index] for k, v in self._whole.items()} or self._read_rows(index, draws)
        if self.framing.flip:
            views = {k: flip_rows(v, draws[:, 0] < 0.5) for k, v in views.items()}
        views = {k: v if v.dtype == torch.float32 else _scaled(v.float(), v) for k, v in views.items()}
        return {"x": views.pop("x"), "cond": {**{k: v[index] for k, v in self.cond.items()}, **views}}

    def _read_rows(self, index: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """Rows that are not all in memory, cut where that is random, as floats."""
        columns: dict[str, list[Tensor]] = {view: [] for view in self.views}
        for i, (_, down, right) in zip(index.tolist(), draws.tolist(), strict=True):
            for view, array in self._row(i).items():
                if self.framing.crop == "random":
                    array = cut(array, self.framing.size, down, right)
                columns[view].append(torch.from_numpy(_scaled(array.astype(np.float32), array)))
        return {view: torch.stack(c) if c else torch.empty(0, *self.shape) for view, c in columns.items()}

    # The Data interface

    def __len__(self) -> int:
        return len(self.views["x"])

    @property
    def labels(self) -> Tensor | None:
        return self.cond.get("label")

    def renumber(self, classes: Sequence[str]) -> None:
        """Take the classes of other data, which have to hold all of one's own; labels are renumbered to them."""
        if self.labels is not None:
            self.cond["label"] = renumbered(self.labels, self.classes, classes)
            self.classes, self._fingerprint = tuple(classes), None

    @property
    def value_range(self) -> tuple[float, float]:
        return (float(self._range[0]), float(self._range[1])) if self._range[0] <= self._range[1] else (-1.0, 1.0)

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.framing} {self.seed} {sorted(self.kinds.items())}".encode())
        for sources in self.views.values():
            digest.update("\n".join(s.name for s in sources).encode())
        digest.update("".join(self._digests or self._read_digests()).encode())
        for key, value in sorted(self.cond.items()):
            hash_tensor(digest, key, value)

    def _read_digests(self) -> list[str]:
        rows = zip(*self.views.values(), strict=True)
        return _parallel(lambda s: hashlib.sha256(s.read()).hexdigest(), [s for row in rows for s in row])


def read_picture(path: str | Path, channels: int, background: str | None = None) -> Tensor:
    """One picture at its own size, (C, H, W) in [-1, 1].

    Args:
        channels, background: see :class:`condiff.data.Framing`.

    Raises:
        BadFile: a file that is missing, corrupt, or transparent without a background.
    """
    framing, path = Framing(channels=channels, background=background), Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path} can't be read ({error.strerror})") from error
    array = to_array(to_mode(decode(raw, path.name), framing, path.name), framing)
    return torch.from_numpy(_scaled(array.astype(np.float32), array))


def _scaled(values: Any, like: np.ndarray | Tensor) -> Any:
    """8-bit or 16-bit pixels -> [-1, 1]."""
    top = 255.0 if like.dtype in (np.uint8, torch.uint8) else 65535.0
    return values * (2.0 / top) - 1.0


def _parallel(fn: Callable[[Item], Any], sources: Sequence[Item]) -> list[Any]:
    """Reading and decoding release the interpreter lock, so threads help."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(fn, sources))


def _check_one(item: Item, framing: Framing) -> _Checked:
    try:
        raw = item.read()
        image = decode(raw, item.name)
        to_mode(image, framing, item.name)
    except BadFile as error:
        return _Checked(item.name, error=str(error).removeprefix(f"{item.name}: "))
    except OSError as error:
        return _Checked(item.name, error=f"can't be read ({error})")
    return _Checked(item.name, hashlib.sha256(raw).hexdigest(), hw(image), is_grey(image))


def _why(checked: _Checked, sample: _Checked) -> Refused | None:
    """Why a picture can't be used: it is corrupt, or has other proportions than the sample it belongs to."""
    (h, w), (sample_h, sample_w) = checked.size, sample.size
    if checked.error:
        return Refused(checked.name, checked.error)
    if not sample.error and abs(h * sample_w - w * sample_h) > max(sample_h, sample_w, h, w):
        return Refused(checked.name, f"{h}x{w} pixels, other proportions than {sample_h}x{sample_w} of {sample.name}")
    return None
