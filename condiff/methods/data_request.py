"""Data as a run asks for it: a source, its options, what is held out; opened, stored and opened again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from condiff.data import (
    SHARE,
    Data,
    Pictures,
    Subset,
    TensorData,
    Together,
    Unpaired,
    digits,
    files_of,
    open_data,
    split,
)
from condiff.data.held_out import check_share
from condiff.errors import BadValue, NonFinite
from condiff.methods.kinds import kind_of

JOINT = "joint"  # the option of any data that names the conditions that are generated beside the samples


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which data: the words of the command line, stored with the run so that it can be opened again.

    Args:
        source, paths, options: see :func:`condiff.data.open_data`.
        held_out: the share that is held out, 0 for none, or the paths of other data.
    """

    source: str
    paths: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    held_out: float | tuple[str, ...] = SHARE

    def open(self) -> tuple[Data, Data | None]:
        """``(training, held-out)`` data, None where nothing is held out.

        Raises:
            BadValue: too few rows for two parts, NaN; other data of another shape.
        """
        if JOINT in self.options:
            train, held = replace(self, options=_without(self.options, JOINT)).open()
            return Together(train, self.options[JOINT]), None if held is None else Together(held, self.options[JOINT])
        if self.source == "digits":
            if self.paths or self.options:
                raise BadValue("digits are bundled: they take no --data and no data options")
            if self.held_out != SHARE:
                raise BadValue("digits are bundled with a held-out part of their own: leave --held-out out")
            return digits("train"), digits("test")
        try:
            data = self.whole()
            if isinstance(self.held_out, tuple):
                return data, self.other(self.held_out, data)
            return (data, None) if self.held_out == 0.0 else split(data, self.held_out)
        except NonFinite as error:  # of the data, not of the work
            raise BadValue(f"{error}: leave such rows out, or fill the gaps") from error

    def whole(self) -> Data:
        """All of the data of a source, in one piece."""
        if JOINT in self.options:
            return Together(replace(self, options=_without(self.options, JOINT)).whole(), self.options[JOINT])
        return open_data(self.source, **self._arguments())

    def other(self, paths: Sequence[str | Path], mine: Data) -> Data:
        """Other data of the same kind, read and scaled as the run's own, with its classes.

        Raises:
            BadValue: of the digits; the same data; samples of another shape; classes that the run doesn't have.
        """
        if self.source == "digits":
            raise BadValue("a run on the bundled digits is evaluated on their held-out part: leave --against out")
        same = [p for p, q in zip(paths, self.paths, strict=False) if self.source != "hub" and _whole(p) == _whole(q)]
        if same:
            raise BadValue(f"{same[0]} is what is trained on: give other data, or a share of it (--held-out 0.2)")
        options = kind_of(mine).options_like(self.options, mine)
        data = replace(self, paths=tuple(str(p) for p in paths), options=options).whole()
        if data.shape != mine.shape:
            raise BadValue(f"{data.name} holds samples of shape {data.shape}, the run was trained on {mine.shape}")
        _read_alike(data, mine)
        return data

    def _arguments(self) -> dict[str, Any]:
        names = files_of(self.source)
        if len(self.paths) != len(names):
            wanted = " ".join(f"--data {n.upper()}" for n in names)
            raise BadValue(f"{self.source} needs {wanted}, got {len(self.paths)} --data")
        return {**dict(zip(names, self.paths, strict=True)), **self.options}

    def is_here(self) -> bool:
        """Whether files that were named are there; bundled data and the Hub's are."""
        if self.source in ("digits", "hub") or not self.paths:
            return True
        held = self.held_out if isinstance(self.held_out, tuple) else ()
        return any(Path(p).exists() for p in self.paths) and (not held or any(Path(p).exists() for p in held))

    def absolute(self) -> DataRequest:
        """With whole paths, so that the run can be opened from any folder; names of the Hub stay."""
        held = self.held_out if isinstance(self.held_out, float | int) else self._absolute(self.held_out)
        return replace(self, paths=self._absolute(self.paths), held_out=held)

    def _absolute(self, paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(Path(p).resolve()) if self.source != "hub" or Path(p).exists() else p for p in paths)

    def stored(self) -> dict[str, Any]:
        """JSON-ready."""
        held = self.held_out if isinstance(self.held_out, float | int) else list(self.held_out)
        return {
            "source": self.source,
            "paths": list(self.paths),
            "options": dict(self.options),
            "held_out": held,
        }

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> DataRequest:
        """What :meth:`stored` gave."""
        held = stored.get("held_out", SHARE)
        held = held if isinstance(held, float | int) else tuple(held)
        return cls(source=stored["source"], paths=tuple(stored["paths"]), options=stored["options"], held_out=held)


def held_out(words: Sequence[str]) -> float | tuple[str, ...]:
    """What ``--held-out`` says: a share, 0 for none, or paths; the usual share without words.

    Raises:
        BadValue: a number outside [0, 1).
    """
    if not words:
        return SHARE
    try:
        share = float(words[0])
    except ValueError:
        return tuple(words)
    if len(words) > 1:
        raise BadValue(f"--held-out is one share, or paths, got {' '.join(words)}")
    if share != 0.0:
        check_share(share)
    return share


def _whole(path: str | Path) -> Path:
    return Path(path).resolve()


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != name}


def _read_alike(data: Data, mine: Data) -> None:
    """Scale other data, and number their classes, as those of the run."""
    mine = mine.data if isinstance(mine, Subset) else mine
    if isinstance(data, Together) and isinstance(mine, Together):
        _read_alike(data.data, mine.data)
    if isinstance(data, Unpaired) and isinstance(mine, Unpaired):
        _read_alike(data.source, mine.source)
        _read_alike(data.target, mine.target)
    if isinstance(data, TensorData) and isinstance(mine, TensorData):
        data.affine = mine.affine
    if isinstance(data, TensorData | Pictures) and data.labels is not None:
        data.renumber(mine.classes)
