"""From the words of a command line to a data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from condiff.data.base import Data
from condiff.data.clips import video
from condiff.data.digits import digits
from condiff.data.folders import images, pairs
from condiff.data.frames import triplets
from condiff.data.halves import halves
from condiff.data.tables import arrays, hub, parquet
from condiff.data.text import text
from condiff.data.unpaired import unpaired
from condiff.data.volumes import volumes
from condiff.data.windows import series
from condiff.errors import BadValue, unknown

SOURCES: dict[str, Callable[..., Data]] = {
    "digits": digits,
    "images": images,
    "pairs": pairs,
    "halves": halves,
    "unpaired": unpaired,
    "triplets": triplets,
    "volumes": volumes,
    "video": video,
    "series": series,
    "text": text,
    "arrays": arrays,
    "parquet": parquet,
    "hub": hub,
}


# Arguments that name files, where they aren't one ``path``: those of ``--data`` in a terminal, in this order.
FILES = {"digits": (), "pairs": ("degraded", "clean"), "unpaired": ("source", "target"), "hub": ("dataset",)}


def files_of(source: str) -> tuple[str, ...]:
    """The arguments of a source that name files, folders or data sets of the Hub.

    Raises:
        BadValue: an unknown source, with the nearest names.
    """
    options(source)
    return FILES.get(source, ("path",))


def options(source: str) -> dict[str, inspect.Parameter]:
    """The options of a source by name, :class:`condiff.data.Framing`'s included.

    Raises:
        BadValue: an unknown source, with the nearest names.
    """
    if source not in SOURCES:
        raise unknown("data source", source, SOURCES)
    own = inspect.signature(SOURCES[source]).parameters
    framing = {n: p for n, p in inspect.signature(images).parameters.items() if n in FRAMING and n not in own}
    extra = framing if any(p.kind is p.VAR_KEYWORD for p in own.values()) else {}
    return {n: p for n, p in own.items() if p.kind is not p.VAR_KEYWORD} | extra


FRAMING = ("channels", "crop", "flip", "filter", "background")


def open_data(source: str, /, **given: Any) -> Data:
    """The data set that a word and options name: ``open_data("images", path="cells/", size=64)``.

    Raises:
        BadValue: an unknown source or option (with the nearest names), or a missing one.
        CondiffError: whatever the source itself refuses.
    """
    known = options(source)
    for name in given:
        if name not in known:
            raise unknown(f"option of {source}", name, [n for n in known if n != "path"])
        if isinstance(known[name].default, bool) and not isinstance(given[name], bool):
            raise BadValue(f"{name} of {source} is true or false, got {given[name]!r}")
    missing = [n for n, p in known.items() if p.default is p.empty and n not in given]
    if missing:
        terminal = {name: f"--data {name.upper()}" for name in files_of(source)}
        named = ", ".join(f"{name} ({terminal.get(name, f'--{name}')} in a terminal)" for name in missing)
        raise BadValue(f"data source {source!r} needs {named}")
    return SOURCES[source](**given)
