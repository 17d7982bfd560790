"""Input, work and output in threads of their own, with short queues between them; what is late is dropped.

Nothing here knows of models: frames are any objects, and the work is any function.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from condiff.errors import BadValue


class Newest:
    """A queue of at most ``size`` items, in which the newest drive out the oldest: putting never waits.

    Args:
        size: items that wait at most.
        keep: nothing is dropped; putting waits for room instead.
    """

    def __init__(self, size: int = 1, keep: bool = False) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise BadValue(f"a queue holds at least one item, got size={size!r}")
        self.size, self.keep, self.dropped = size, keep, 0
        self._items: deque[Any] = deque()
        self._change = threading.Condition()
        self._closed = False

    def put(self, item: Any) -> bool:
        """Whether it was taken; False once the queue is closed."""
        with self._change:
            while self.keep and len(self._items) >= self.size and not self._closed:
                self._change.wait()
            if self._closed:
                return False
            if len(self._items) >= self.size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._change.notify_all()
            return True

    def close(self, empty: bool = False) -> None:
        """Nothing more comes; what waits is still handed out, unless it is to be ``empty``."""
        with self._change:
            self._closed = True
            if empty:
                self._items.clear()
            self._change.notify_all()

    def __iter__(self) -> Iterator[Any]:
        """Items as they come, waiting for them, until the queue is closed and empty."""
        while True:
            with self._change:
                while not self._items and not self._closed:
                    self._change.wait()
                if not self._items:
                    return
                item = self._items.popleft()
                self._change.notify_all()
            yield item

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True)
class Pace:
    """How a live run went: frames that came, that were dropped unseen, that went out; frames out a second; and the
    seconds from a frame's coming to its going out, at the median and at the 95th percentile (None before any)."""

    received: int
    dropped: int
    out: int
    rate: float
    latency: float | None
    latency_95: float | None


class Live:
    """``for picture in Live(frames, work)``: the newest frame is worked on while the next ones are read.

    Frames are read in one thread and worked on in another; who iterates is the third. Leaving the loop or the ``with``
    block stops both. What goes wrong in either is raised where the pictures are taken.

    Args:
        frames: an iterable, such as a camera; read as fast as it gives them.
        work: frame -> picture, or None while the first ones are on their way; a :class:`~condiff.streaming.Translator`.
        waiting: frames that wait for the work at most; the newest ones win.
        drop: with False nothing is dropped: reading waits for the work, as for a file.

    Example:
        >>> with Live(camera(0), translator) as live:
        ...     for picture in live:
        ...         show(picture)
    """

    def __init__(
        self, frames: Iterable[Any], work: Callable[[Any], Any], *, waiting: int = 1, drop: bool = True
    ) -> None:
        self.frames, self.work = frames, work
        self._in, self._out = Newest(waiting, keep=not drop), Newest(2, keep=not drop)
        self._error: BaseException | None = None
        self._arrivals: deque[float] = deque()
        self._latencies: deque[float] = deque(maxlen=1000)
        self._received = self._count = 0
        self._began = self._ended = time.monotonic()
        self._threads = [threading.Thread(target=self._guarded, args=(f,), daemon=True) for f in (self._read, self._do)]

    def __enter__(self) -> Live:
        if self._threads[0].ident is None:
            self._began = time.monotonic()
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        with self:
            yield from self._out
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """Stop reading and working; waits for the frame that is being worked on."""
        for queue in (self._in, self._out):
            queue.close(empty=True)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout=10.0)

    @property
    def running(self) -> bool:
        """Whether a thread still is at work."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def pace(self) -> Pace:
        """How it went so far."""
        spent, waits = max(self._ended - self._began, 1e-9), sorted(self._latencies)
        median = statistics.median(waits) if waits else None
        late = waits[min(len(waits) - 1, int(0.95 * len(waits)))] if waits else None
        dropped = self._in.dropped + self._out.dropped
        return Pace(self._received, dropped, self._count, self._count / spent, median, late)

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # raised again by who takes the pictures
            self._error = error
        finally:
            if part == self._read:
                self._in.close(empty=self._error is not None)
            else:
                self._in.close(empty=True)
                self._out.close()

    def _read(self) -> None:
        for frame in self.frames:
            self._received += 1
            if not self._in.put((time.monotonic(), frame)):
                return

    def _do(self) -> None:
        for arrived, frame in self._in:
            self._arrivals.append(arrived)
            made = self.work(frame)
            if made is None:
                continue
            self._ended = time.monotonic()
            self._latencies.append(self._ended - self._arrivals.popleft())
            self._count += 1
            if not self._out.put(made):
                return
