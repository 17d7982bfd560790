"""One page that is connected: its messages over the WebSocket, and what it is told.

The page sends ``{"type": "sample", "ref": NAME, "settings": {...}}`` and ``{"type": "cancel", "ref": NAME}``, and is
told, always with the ``ref``: ``accepted``, ``queued`` (``ahead``), ``started``, ``step`` (``index``, ``steps``,
``view``), and at the end one of ``done``, ``cancelled`` and ``error`` (``message``).
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from condiff.errors import BadValue, CondiffError
from condiff.web.limits import Limits
from condiff.web.settings import read_json, read_settings, words
from condiff.web.worker import Busy, Job, Message, Worker

BEHIND = 32  # messages that a page may lag before it is told fewer steps
LAST = ("done", "cancelled", "error")


class Session:
    """
    Args:
        websocket: accepted already.
    """

    def __init__(self, websocket: Any, worker: Worker, limits: Limits) -> None:
        self._websocket, self._worker, self._limits = websocket, worker, limits
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._jobs: dict[str, Job] = {}

    async def run(self) -> None:
        """Until the page goes; then whatever it asked for is cancelled."""
        sender = asyncio.create_task(self._send())
        try:
            while (text := await self._receive()) is not None:
                self._take(text)
        finally:
            for job in list(self._jobs.values()):  # first: this task may be cancelled, and whatever awaits with it
                self._worker.cancel(job)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _receive(self) -> str | None:
        """The next message; None when there will be no more. Bytes are read as text that can't be."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text = message.get("text")
        return "" if text is None else text

    def _take(self, text: str) -> None:
        ref = None
        try:
            if len(text) > self._limits.message:
                raise BadValue(f"a message may have {self._limits.message} characters here, got {len(text)}")
            data = read_json(text)
            if not isinstance(data, dict):
                raise BadValue("a message is a JSON object")
            ref = words("ref", data.get("ref"), 64)
            self._act(ref, data)
        except CondiffError as error:
            self._put({"type": "error", "ref": ref, "message": str(error)})

    def _act(self, ref: str, data: dict[str, Any]) -> None:
        if data.get("type") == "cancel":
            job = self._jobs.get(ref)
            if job is not None:
                self._worker.cancel(job)
            return
        if data.get("type") != "sample":
            raise BadValue("a message has the type sample or cancel")
        if ref in self._jobs:
            raise BadValue("this ref belongs to a request that isn't done")
        if sum(not job.stop.is_set() for job in self._jobs.values()) >= self._limits.each:
            raise Busy(f"a page may have {self._limits.each} requests at a time")
        settings = read_settings(data.get("settings"), self._limits)
        self._jobs[ref] = job = self._worker.submit(settings, partial(self._tell, ref))
        self._put({"type": "accepted", "ref": ref, "job": job.id})

    def _tell(self, ref: str, message: Message) -> None:
        """From any thread; a loop that has ended hears nothing."""
        try:
            self._loop.call_soon_threadsafe(self._put, {**message, "ref": ref})
        except RuntimeError:
            return

    def _put(self, message: Message) -> None:
        if message["type"] in LAST and message["ref"] is not None:
            self._jobs.pop(message["ref"], None)
        if message["type"] != "step" or self._out.qsize() < BEHIND:
            self._out.put_nowait(message)

    async def _send(self) -> None:
        while True:
            await self._websocket.send_text(json.dumps(await self._out.get(), allow_nan=False))
