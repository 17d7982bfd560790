"""Finished requests whose files can be downloaded; the oldest make room."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from condiff.web.limits import Limits
from condiff.web.source import Made, Source

FORMAT = "condiff samples 1"


class Results:
    """By the id of their request."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source, self._limits = source, limits
        self._kept: OrderedDict[str, Made] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, made: Made) -> None:
        with self._lock:
            self._kept[name] = made
            most = 2 * self._limits.numbers
            while len(self._kept) > 1 and (
                len(self._kept) > self._limits.results or sum(m.x.numel() for m in self._kept.values()) > most
            ):
                self._kept.popitem(last=False)

    def file(self, name: str, ending: str) -> bytes | None:
        """The content of one of a request's files; None where there is none (any more)."""
        with self._lock:
            made = self._kept.get(name)
        if made is None:
            return None
        if ending == "json":
            return (json.dumps(metadata(made), indent=1) + "\n").encode()
        write = self._source.files(made).get(ending)
        return None if write is None else write(json.dumps(metadata(made)))


def metadata(made: Made) -> dict[str, Any]:
    """How samples were made; a page reads its form from it."""
    return {"format": FORMAT, "settings": made.settings.as_json(), "facts": dict(made.facts)}
