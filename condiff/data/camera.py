"""A camera as an iterable of frames, through PyAV."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from condiff.errors import BadFile, BadValue, require_extra

SYSTEMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


def camera(number: int = 0, size: tuple[int, int] | None = None, rate: int | None = None) -> Iterator[Any]:
    """The frames of a camera as Pillow images, without end, as it gives them.

    Args:
        number: of the camera, 0 the first.
        size: (height, width) that it is asked for.
        rate: frames a second that it is asked for.

    Raises:
        BadFile: no such camera, or one that can't be opened.
        BadValue: a negative number, a system that isn't known here.
        MissingExtra: without PyAV.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise BadValue(f"cameras are numbered from 0, got {number!r}")
    av = require_extra("av", "video")
    if sys.platform not in SYSTEMS:
        raise BadValue(f"cameras are read on {', '.join(SYSTEMS)}, this is {sys.platform}")
    format, name = SYSTEMS[sys.platform]
    options = {} if size is None else {"video_size": f"{size[1]}x{size[0]}"}
    options |= {} if rate is None else {"framerate": str(rate)}
    place = name.format(number)
    try:
        container = av.open(place, format=format, options=options)
    except (OSError, ValueError) as error:  # PyAV's own errors are both, by kind
        raise BadFile(f"camera {number} ({place}) can't be opened: {error}") from error
    return _frames(container)


def _frames(container: Any) -> Iterator[Any]:
    with container:
        for frame in container.decode(video=0):
            yield frame.to_image()
