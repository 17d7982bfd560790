"""Option types with the words that help shows: an option that isn't given has no ``(default: None)`` to puzzle over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def _plain(word: str, **kwargs):
    return tyro.conf.arg(metavar=word, help_behavior_hint="", **kwargs)


OptionalInt = Annotated[int | None, _plain("N")]
OptionalFloat = Annotated[float | None, _plain("X")]
OptionalText = Annotated[str | None, _plain("TEXT")]
OptionalPath = Annotated[Path | None, _plain("PATH")]
Several = Annotated[
    tuple[str, ...],
    _plain(
        "TEXT",
    ),
    tyro.conf.UseAppendAction,
]
Many = Annotated[tuple[tuple[str, ...], ...], _plain("TEXT..."), tyro.conf.UseAppendAction]  # --x a b, or --x a --x b
TwoWords = Annotated[tuple[str, str] | None, _plain("WORD WORD")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Source = Annotated[str | None, tyro.conf.Positional, _plain("SOURCE")]
RunFolder = Annotated[Path, tyro.conf.Positional, _plain("RUN")]
Slug = Annotated[str, tyro.conf.Positional, _plain("METHOD")]
SomePath = Annotated[Path | None, tyro.conf.Positional, _plain("PATH")]
Repository = Annotated[str, tyro.conf.Positional, _plain("OWNER/NAME")]
SomePlace = Annotated[str | None, tyro.conf.Positional, _plain("PLACE")]
RunOrPipeline = Annotated[str, tyro.conf.Positional, _plain("RUN_OR_PIPELINE")]
Size = Annotated[tuple[int, int] | None, _plain("HEIGHT WIDTH")]
Pictures = Annotated[Path, tyro.conf.Positional, _plain("PICTURES")]


def flat(groups: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """All words of a :data:`Many`, in order."""
    return tuple(word for group in groups for word in group)
