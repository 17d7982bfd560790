"""Folders of clips, as samples (F, C, H, W) of frames in order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from condiff.data.base import Data, Refused
from condiff.data.picture import Framing, as_size, hw, is_grey, to_array, to_mode
from condiff.data.video_files import Footage, footage, recordings
from condiff.errors import BadFile, BadType, BadValue

FIRST = "first"  # the condition that holds a clip's first frames


class Window(NamedTuple):
    """Some frames of one recording."""

    footage: Footage
    indices: tuple[int, ...]


class Clips(Data):
    """Clips (F, C, H, W) in [-1, 1], decoded when needed; made by :func:`clips`.

    Args:
        windows: which frames each sample is.
        framing: how frames become arrays; its size and channels must be known, its flip off.
        given: first frames that are also a condition ``first``, (B, given, C, H, W), from which a clip is continued.
        cache: megabytes of decoded clips to keep in memory.
    """

    moving = True

    def __init__(
        self,
        windows: Sequence[Window],
        framing: Framing,
        *,
        name: str = "clips",
        refused: Sequence[Refused] = (),
        notes: Sequence[str] = (),
        given: int = 0,
        cache: int = 512,
    ) -> None:
        if framing.size is None or framing.channels is None or framing.flip or framing.crop == "random":
            raise BadValue("clips need a size and channels, and neither flips nor random crops")
        self.windows, self.framing, self.name = list(windows), framing, name
        self.refused, self.notes = tuple(refused), tuple(notes)
        self.shape = (len(self.windows[0].indices), framing.channels, *framing.size)
        if not 0 <= given < max(2, self.shape[0]):
            raise BadValue(f"given frames are fewer than the clip's {self.shape[0]}, got {given}")
        self.given, self.kinds = given, {FIRST: "frames"} if given else {}
        self._kept: dict[int, np.ndarray] = {}
        self._budget = cache * 2**20

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def value_range(self) -> tuple[float, float]:
        return -1.0, 1.0

    @property
    def spans(self) -> Tensor:
        numbers = {path: i for i, path in enumerate(dict.fromkeys(w.footage.path for w in self.windows))}
        return torch.tensor([(numbers[w.footage.path], w.indices[0], w.indices[-1]) for w in self.windows])

    def _rows(self, index: Tensor, epoch: int) -> dict[str, Any]:
        rows = [torch.from_numpy(self._scaled(i)) for i in index.tolist()]
        x = torch.stack(rows) if rows else torch.empty(0, *self.shape)
        return {"x": x, "cond": {FIRST: x[:, : self.given]} if self.given else {}}

    def _scaled(self, i: int) -> np.ndarray:
        array = self._array(i)
        top = 255.0 if array.dtype == np.uint8 else 65535.0
        return array.astype(np.float32) * (2.0 / top) - 1.0

    def _array(self, i: int) -> np.ndarray:
        return self._kept[i] if i in self._kept else self._decode(i)

    def _decode(self, i: int) -> np.ndarray:
        window = self.windows[i]
        name = window.footage.path.name
        images = window.footage.frames(window.indices)
        if len({hw(image) for image in images}) > 1:
            raise BadFile(f"{name}: its frames have several sizes, {sorted({hw(image) for image in images})}")
        array = np.stack([to_array(to_mode(image, self.framing, name), self.framing) for image in images])
        if array.nbytes <= self._budget:
            self._budget -= array.nbytes
            self._kept[i] = array
        return array

    def _content(self, digest: Any) -> None:
        digest.update(f"{self.framing} {self.given}".encode() if self.given else f"{self.framing}".encode())
        for i, window in enumerate(self.windows):
            pixels = hashlib.sha256(self._array(i).tobytes()).hexdigest()
            digest.update(f"{window.footage.path.name} {window.indices} {pixels}".encode())


def clips(
    path: str | Path,
    frames: int,
    size: int | tuple[int, int] | None = None,
    *,
    stride: int | None = None,
    fps: float | None = None,
    hop: int | Literal["length"] | None = None,
    channels: int | None = None,
    crop: str | None = "center",
    filter: str = "lanczos",
    background: str | None = None,
    skip_bad: bool = False,
    given: int = 0,
    cache: int = 512,
) -> Clips:
    """The clips below a folder: every folder that holds pictures is one (ordered by the numbers in their names), and so
    is every animated picture and every video file.

    Args:
        path: the folder.
        frames: F, how many frames a sample has.
        size: pixels of the square, or (height, width); None when all clips have one size.
        stride: take every k-th frame; 1 by default.
        fps: in its place, frames per second of the sample, for files that say their own rate.
        hop: frames of the recording from the start of one sample to that of the next; ``"length"`` for one sample
            behind the other; one sample each, from its start, when None.
        channels, crop, filter, background: see :class:`condiff.data.Framing`; no random crops.
        skip_bad: leave out recordings that are too short or can't be read, listed in ``refused``.
        given: the first frames that are also a condition ``first``, from which a clip is continued.
        cache: megabytes of decoded clips to keep in memory.

    Raises:
        BadFile: no such folder, no clips, recordings that can't be read or are too short (without ``skip_bad``).
        BadValue: numbers out of range, clips of several sizes without ``size``, a rate that isn't known or is too low.
        MissingExtra: video files, and nothing that reads them.
    """
    root, step = Path(path), _step(frames, stride, fps, hop)
    found, others = recordings(root)
    windows: list[Window] = []
    refused = [Refused(f"{len(others)} other files", "neither pictures nor videos")] if others else []
    bad: list[Refused] = []
    sizes, grey = set(), True
    for place in found:
        name = place.relative_to(root).as_posix() if place != root else root.name
        try:
            one = footage(place)
            mine = _windows(one, frames, step, fps, hop, name)
            first = one.frames(mine[0].indices[:1])[0]
        except BadFile as error:
            bad.append(Refused(name, str(error)))
            continue
        sizes.add(hw(first))
        grey = grey and is_grey(first)
        windows += mine
    if bad and (not skip_bad or not windows):
        listed = "".join(f"\n  {b.name}: {b.reason}" for b in bad[:12]) + ("\n  ..." if len(bad) > 12 else "")
        hint = "; skip_bad=True (--skip-bad) leaves them out" if windows else ""
        raise BadFile(f"{root}: {len(bad)} of {len(found)} clips can't be used{hint}:{listed}")
    if size is None and len(sizes) > 1:
        raise BadValue(f"{root}: clips of {len(sizes)} sizes, {min(sizes)} to {max(sizes)}: give size= (--size)")
    framing = Framing(
        size=as_size(size) or sizes.pop(),
        channels=channels or (1 if grey else 3),
        crop=crop,
        filter=filter,
        background=background,
    )
    pace = f"{fps:g} a second" if fps else "every one of a recording" if step == 1 else f"one in {step}"
    notes = [f"read as clips of {frames} frames, {pace}"]
    notes += [f"given: the first {'frame' if given == 1 else f'{given} frames'} of a clip"] if given else []
    named: dict[str, Any] = {"name": root.name or str(root), "refused": [*refused, *bad], "notes": notes}
    return Clips(windows, framing, **named, given=given, cache=cache)


def video(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    given: int = 1,
    frames: int = 17,
    hop: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    channels: int | None = None,
    crop: str | None = "center",
    filter: str = "lanczos",
    background: str | None = None,
    skip_bad: bool = False,
    cache: int = 512,
) -> Clips:
    """Clips to be continued from their first frames, cut from recordings one behind the other.

    Args:
        path, size: as for :func:`clips`.
        given: frames that a clip is continued from.
        frames: length of a clip.
        hop: frames of the recording from the start of one clip to that of the next; by default one clip begins behind
            the other.
        stride, fps, channels, crop, filter, background, skip_bad, cache: as for :func:`clips`.

    Raises:
        BadFile: as :func:`clips`.
        BadValue: as many frames given as there are, or none; and as :func:`clips`.
    """
    if given < 1:
        raise BadValue(f"clips are continued from at least one given frame, got {given}")
    return clips(
        path,
        frames,
        size,
        given=given,
        hop="length" if hop is None else hop,
        stride=stride,
        fps=fps,
        channels=channels,
        crop=crop,
        filter=filter,
        background=background,
        skip_bad=skip_bad,
        cache=cache,
    )


def _step(frames: int, stride: int | None, fps: float | None, hop: int | str | None) -> int:
    for name, value in (("frames", frames), ("stride", stride), ("hop", None if hop == "length" else hop)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise BadType(f"{name} must be an integer, got {value!r}")
        if value is not None and value < 1:
            raise BadValue(f"{name} must be at least 1, got {value}")
    if fps is not None and (stride is not None or not 0.0 < fps < float("inf")):
        raise BadValue(f"give stride=, or fps= above 0, got stride={stride} and fps={fps}")
    return stride or 1


def _windows(one: Footage, frames: int, step: int, fps: float | None, hop: int | str | None, name: str) -> list[Window]:
    """The samples of one recording."""
    every = float(step)
    if fps is not None:
        if one.rate is None:
            raise BadValue(f"{name} doesn't say how many frames it has a second: give stride= in place of fps=")
        every = one.rate / fps
        if every < 1.0 - 1e-6:
            raise BadValue(f"{name} has {one.rate:g} frames a second, fewer than fps={fps:g}: frames would repeat")
    offsets = [round(k * every) for k in range(frames)]
    last = one.count - 1 - offsets[-1]
    if last < 0:
        raise BadFile(f"{one.count} frames, and {offsets[-1] + 1} are needed")
    apart: Any = max(offsets[-1] + 1, round(frames * every)) if hop == "length" else hop
    starts = [0] if apart is None else range(0, last + 1, apart)
    return [Window(one, tuple(start + o for o in offsets)) for start in starts]
