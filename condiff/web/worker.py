"""One thread that runs the model; requests wait in line, say where they stand, and can be cancelled between steps."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from condiff.errors import CondiffError
from condiff.web.settings import Settings

Message = dict[str, Any]
log = logging.getLogger(__name__)


class Busy(CondiffError):
    """The queue is full."""


class Cancelled(Exception):
    """Ends a request from inside; nobody did anything wrong."""


@dataclass(eq=False)
class Job:
    """A request: what to make, and whom to tell. ``tell`` is called from the worker's thread and must not wait."""

    settings: Settings
    tell: Callable[[Message], None]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """
        Raises:
            Cancelled: this request was.
        """
        if self.stop.is_set():
            raise Cancelled


class Worker:
    """Runs ``work(job) -> last message`` for one job after the other.

    Args:
        most: jobs that wait.
    """

    def __init__(self, work: Callable[[Job], Message], most: int) -> None:
        self._work, self._most = work, most
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="condiff-worker", daemon=True)
        self._thread.start()

    def submit(self, settings: Settings, tell: Callable[[Message], None]) -> Job:
        """
        Raises:
            Busy: too many wait already.
        """
        job = Job(settings, tell)
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            if len(self._waiting) >= self._most:
                raise Busy(f"{self._most} requests are waiting already: try again in a moment")
            self._waiting.append(job)
            self._tell_positions()
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Take a job out of the line, or end it after the step that it is in."""
        job.stop.set()
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            job.tell({"type": "cancelled"})
            self._tell_positions()

    def close(self, wait: float = 10.0) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                job.stop.set()
            self._changed.notify()
        self._thread.join(wait)

    def _tell_positions(self) -> None:
        """How many are before each, the one that runs included."""
        ahead = int(self._running is not None)
        for place, job in enumerate(self._waiting):
            job.tell({"type": "queued", "ahead": place + ahead})

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                for job in self._waiting:
                    job.tell({"type": "cancelled"})
                self._waiting.clear()
                return None
            self._running = self._waiting.pop(0)
            self._tell_positions()
            return self._running

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            job.tell(self._outcome(job))

    def _outcome(self, job: Job) -> Message:
        """The last message of a job. Whatever went wrong is told, and the thread goes on."""
        try:
            job.check()
            return self._work(job)
        except Cancelled:
            return {"type": "cancelled"}
        except CondiffError as error:
            return {"type": "error", "message": str(error)}
        except Exception as error:  # a fault of ours, or a machine that is too small
            log.exception("request %s failed", job.id)
            return {"type": "error", "message": explained(error)}


def explained(error: Exception) -> str:
    """What a page is told of an error that isn't one of ours: nothing of the inside."""
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return "the server ran out of memory: ask for fewer samples"
    return "the server failed at this request; its log says why"
