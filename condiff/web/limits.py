"""What a page may ask of the server at most."""

from __future__ import annotations

from dataclasses import dataclass, fields

from condiff.errors import BadValue
from condiff.fields import checked


@dataclass(frozen=True, kw_only=True)
@checked
class Limits:
    """Bounds of requests; whoever starts the server sets them.

    Args:
        num, steps: samples and steps of one request.
        numbers: values of all samples of one request together.
        queue: requests that wait, of all pages together.
        each: requests of one page that wait or run.
        clients: pages that are connected.
        upload: bytes of a picture that is sent.
        pixels: its pixels, which may be far more than its bytes promise.
        uploads: pictures that are remembered; the oldest go first.
        results: finished requests whose files can still be downloaded.
        message: bytes of a message over the WebSocket.
        text: characters of a prompt, a prefix or a suffix.
    """

    num: int = 64
    steps: int = 1000
    numbers: int = 2**27
    queue: int = 16
    each: int = 4
    clients: int = 32
    upload: int = 16 * 2**20
    pixels: int = 40_000_000
    uploads: int = 64
    results: int = 24
    message: int = 64 * 2**10
    text: int = 4000

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise BadValue(f"the limit {field.name} must be at least 1, got {getattr(self, field.name)}")
