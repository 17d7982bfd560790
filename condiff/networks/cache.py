"""Keys and values that are kept: a queue per layer, and the two queues that a network over frames has.

A cache is an object of its own: who writes to it, and when, is seen where it is done, nothing is kept inside a
network. ``FrameCache`` counts the frames that were ever written apart from those that it holds, because positions go
on counting when the oldest frames are dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condiff.errors import BadType, BadValue, Incompatible

Pair = tuple[Tensor, Tensor]


class KVQueue:
    """Keys and values of several layers, oldest first along one axis.

    Args:
        layers: how many.
        axis: along which entries follow each other; rows, (batch, ...), are axis 0.

    Keys are those before positions are put into them, so that positions may be given when they are read.
    """

    def __init__(self, layers: int, axis: int = 1) -> None:
        if layers < 1:
            raise BadValue(f"a cache has at least one layer, got {layers}")
        self.layers, self.axis = layers, axis
        self._kept: list[Pair | None] = [None] * layers

    @property
    def length(self) -> int:
        """Entries that are held (of the last layer, which is written last)."""
        kept = self._kept[-1]
        return 0 if kept is None else kept[0].shape[self.axis]

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return sum(t.numel() * t.element_size() for pair in self._kept if pair is not None for t in pair)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put newer entries behind those of a layer."""
        before = self._kept[layer]
        pair = (keys.contiguous(), values.contiguous())  # copies of what is a view of all projections
        if before is not None:
            pair = tuple(torch.cat([old, new], self.axis) for old, new in zip(before, pair, strict=True))
        self._kept[layer] = pair  # type: ignore[assignment]

    def read(self, layer: int, rows: int | None = None) -> Pair:
        """Keys and values of a layer, of the first ``rows`` rows.

        Raises:
            BadValue: nothing was written yet.
        """
        kept = self._kept[layer]
        if kept is None:
            raise BadValue(f"layer {layer} of the cache is empty: write to it before it is read")
        return kept if rows is None else (kept[0][:rows], kept[1][:rows])

    def evict(self, length: int) -> None:
        """Drop the oldest entries so that at most ``length`` stay."""
        self._cut(lambda held: slice(max(0, held - length), held))

    def truncate(self, length: int) -> None:
        """Drop the newest entries so that at most ``length`` stay: what was written last is undone."""
        self._cut(lambda held: slice(0, length))

    def _cut(self, part: Any) -> None:
        for layer, pair in enumerate(self._kept):
            if pair is None:
                continue
            held = pair[0].shape[self.axis]
            start, stop, _ = part(held).indices(held)
            if stop - start < held:  # a copy: a view would keep all of the old tensor in memory
                index = (slice(None),) * self.axis + (slice(start, stop),)
                self._kept[layer] = (pair[0][index].clone(), pair[1][index].clone())

    def clear(self) -> None:
        """Forget everything."""
        self._kept = [None] * self.layers


class FrameCache:
    """What a network over frames keeps of the frames before: see :class:`condiff.networks.VideoTransformer`.

    Args:
        layers: of the network.
        max_frames: how many frames the temporal queue holds; the oldest go first. None for no limit.
        reference: how many of the newest frames the reference queue holds; 0 for none.
        branches: copies of the batch, one after the other, such as the two of classifier-free guidance. All are
            written at once, in the order in which they are read; a call with the rows of one batch reads the first.

    Attributes:
        temporal: (rows, sites, frames, heads, d), for attention along time.
        reference_queue: (rows, frames, sites, heads, d), for attention to the newest frames. At the first write it is
            filled up with copies of the oldest frame.
        count: frames that were ever written, which positions go by.
        rows: batch times branches, fixed by the first write.
    """

    def __init__(self, layers: int, max_frames: int | None = None, *, reference: int = 0, branches: int = 1) -> None:
        for name, value, least in (
            ("max_frames", max_frames, 1),
            ("reference", reference, 0),
            ("branches", branches, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise BadType(f"{name} must be an integer, got {value!r}")
            if value is not None and value < least:
                raise BadValue(f"{name} must be at least {least}, got {value}")
        self.max_frames, self.reference, self.branches = max_frames, reference, branches
        self.temporal = KVQueue(layers, axis=2)
        self.reference_queue = KVQueue(layers, axis=1)
        self.count, self.rows = 0, None
        self._staged: list[tuple[Pair, Pair | None]] = []

    @property
    def layers(self) -> int:
        return self.temporal.layers

    @property
    def length(self) -> int:
        """Frames that are held."""
        return self.temporal.length

    @property
    def nbytes(self) -> int:
        """Memory of both queues."""
        return self.temporal.nbytes + self.reference_queue.nbytes

    # Writing

    def open(self, rows: int, frames: int) -> None:
        """Before a pass that writes ``frames`` frames.

        Raises:
            BadValue: more frames than the queue holds, another number of rows than before.
        """
        if self.max_frames is not None and frames > self.max_frames:
            raise BadValue(
                f"{frames} frames can't be written to a cache of {self.max_frames}: write them in pieces, or hold more"
            )
        if rows % self.branches:
            raise BadValue(f"{rows} rows can't be the {self.branches} branches of a batch")
        if self.rows is not None and rows != self.rows:
            raise BadValue(f"a cache of {self.rows} rows was begun; {rows} rows need a new one")
        self._staged = []

    def stage(self, layer: int, temporal: Pair, reference: Pair | None) -> None:
        """A layer's own keys and values; nothing is read of them until :meth:`commit`.

        Raises:
            BadValue: layers out of order.
        """
        if layer != len(self._staged) or layer >= self.layers:
            raise BadValue(f"layer {layer} was written after {len(self._staged)} of {self.layers} layers")
        self._staged.append((temporal, reference))

    def commit(self, rows: int, frames: int) -> None:
        """Take in what all layers staged, and drop the oldest frames.

        Raises:
            BadValue: a pass that didn't reach the last layer.
        """
        if len(self._staged) != self.layers:
            raise BadValue(f"only {len(self._staged)} of {self.layers} layers were written")
        for layer, (temporal, reference) in enumerate(self._staged):
            self.temporal.append(layer, *temporal)
            if reference is not None and self.reference:
                if self.count == 0:
                    self._fill(layer, reference)
                self.reference_queue.append(layer, *reference)
        self._staged, self.rows, self.count = [], rows, self.count + frames
        self.reference_queue.evict(self.reference)
        if self.max_frames is not None:
            self.temporal.evict(self.max_frames)

    def _fill(self, layer: int, pair: Pair) -> None:
        """Copies of the oldest frame in front, as many as the queue holds."""
        self.reference_queue.append(
            layer, *(t[:, :1].expand(-1, self.reference, *t.shape[2:]).contiguous() for t in pair)
        )

    # Reading

    def check_read(self, rows: int) -> None:
        """
        Raises:
            BadValue: nothing was written yet, a batch of another size than the one that was.
        """
        if self.rows is None:
            raise BadValue("the cache is empty: write the given frames before any is denoised")
        if rows not in (self.rows, self.rows // self.branches):
            raise BadValue(
                f"the cache holds {self.rows} rows ({self.branches} branches), and {rows} rows came: a batch keeps its "
                "size during a rollout"
            )

    def read(self, layer: int, rows: int) -> Pair:
        """Keys and values along time, (rows, sites, frames, heads, d) each."""
        return self.temporal.read(layer, rows)

    def read_reference(self, layer: int, rows: int) -> Pair:
        """Keys and values of the newest frames, (rows, reference, sites, heads, d) each."""
        return self.reference_queue.read(layer, rows)

    def truncate(self, frames: int) -> None:
        """Forget the newest ``frames`` frames, along time, and their count.

        Raises:
            BadValue: more than are held.
            Incompatible: with a reference queue, which has dropped what it held before them.
        """
        if self.reference and frames:
            raise Incompatible("the reference queue has no older frames to go back to: write anew from there")
        if not 0 <= frames <= self.length:
            raise BadValue(f"{self.length} frames are held, {frames} can't be taken back")
        self.temporal.truncate(self.length - frames)
        self.count -= frames

    def clear(self) -> None:
        """Forget everything; the next write may have another number of rows."""
        self.temporal.clear()
        self.reference_queue.clear()
        self.count, self.rows, self._staged = 0, None, []

    def __repr__(self) -> str:
        return (
            f"FrameCache({self.length} of {self.max_frames or 'any number of'} frames, {self.count} written, "
            f"{self.rows or 0} rows, {self.layers} layers, {self.nbytes / 2**20:.1f} MiB)"
        )
