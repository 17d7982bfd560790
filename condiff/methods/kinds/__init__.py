"""Kinds of data: what each needs to be learned, drawn, judged, looked at and written by a run.

A run asks :func:`kind_of` its data and then the kind; nothing else of ``condiff train``, ``sample`` and ``evaluate``
knows pictures from text. A new kind is one class and its place here:

1. A module beside this one with a subclass of :class:`Kind` (or of a kind that is nearly it) and its ``matches(data)``.
   Then what differs from plain values, and only that: ``default_method``, ``network`` and ``training`` (defaults for
   its :class:`condiff.methods.Facts`), ``fits`` (which processes make such samples), ``judged``, ``fewest`` and
   ``score`` (the figures of metrics.json; say in ``report.MEANING`` what a new one means), ``shown`` and ``show``
   (what is looked at), ``endings``, ``ending`` and ``write`` (the files of ``condiff sample --out``),
   ``read_conditions`` (``--condition``). What is held out of data that can't be cut at random is ``Data.cut``'s.
2. Samples that aren't the end of one trajectory override :meth:`Kind.draw`, which makes the rows of a
   :class:`~condiff.methods.drawn.Plan` and returns a :class:`~condiff.methods.drawn.Part`. Frames rolled out block by
   block, or a forecast from the past of ``plan.cond``, are such. Row i must depend on ``plan.seed + i`` and its own
   conditions alone: then batches, and processes that share the work, change nothing.
3. Samples that are dictionaries (the variables of a :class:`condiff.process.Joint` process) are drawn, kept and put
   together as tensors are. Their kind overrides ``numbers``, ``std``, ``fits``, ``network``, ``score`` and ``write``; a
   denoiser of its own has a line in ``recipe.DENOISERS``.
4. Its place in ``KINDS``, before the kinds that it is a special case of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condiff.data import Data
from condiff.errors import BadFile
from condiff.methods.kinds.clips import Clips
from condiff.methods.kinds.kind import Kind, OfRun
from condiff.methods.kinds.pictures import Fields, Pictures
from condiff.methods.kinds.together import Together
from condiff.methods.kinds.tokens import Text, Tokens
from condiff.methods.kinds.vectors import Series, Vectors
from condiff.methods.kinds.volumes import Scans, Volumes
from condiff.methods.kinds.windows import SeriesWindows

KINDS: tuple[Kind, ...] = (
    Together(),
    Text(),
    Tokens(),
    Scans(),
    Clips(),
    Volumes(),
    Pictures(),
    Fields(),
    SeriesWindows(),
    Series(),
    Vectors(),
)

__all__ = [
    "KINDS",
    "Clips",
    "Fields",
    "Kind",
    "OfRun",
    "Pictures",
    "Scans",
    "Series",
    "SeriesWindows",
    "Text",
    "Together",
    "Tokens",
    "Vectors",
    "Volumes",
    "kept_options",
    "kind_of",
    "recalled",
]


def kind_of(data: Any) -> Kind:
    """The kind of a data set, or of what has its ``shape`` and ``vocab``."""
    return next(kind for kind in KINDS if kind.matches(data))


def recalled(facts: Mapping[str, Any], options: Mapping[str, Any]) -> Data:
    """The data of a run as far as it is remembered, where it isn't here.

    Raises:
        BadFile: of a kind that isn't known here.
    """
    kind = next((kind for kind in KINDS if type(kind).__name__ == facts["kind"]), None)
    if kind is None:
        raise BadFile(f"the run was made on data of a kind that this version doesn't know: {facts['kind']}")
    return kind.recalled(facts, options)


def kept_options(source: str, options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a run's data when it is opened again, with what its kind kept in its folder."""
    kept = next((kind for kind in KINDS if source in kind.sources), None)
    return dict(options) if kept is None else kept.kept_options(options, folder)
