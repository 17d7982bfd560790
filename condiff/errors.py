"""Errors raised at the door: what came, what was wanted, what to do.

Every error of condiff is a :class:`CondiffError` and also the built-in error that a
caller who doesn't know condiff would expect (``ValueError``, ``TypeError``, ...).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CondiffError(Exception):
    """Base of all errors that condiff raises on purpose."""


class BadValue(CondiffError, ValueError):
    """A value out of its range, a wrong shape, an unknown name."""


class BadType(CondiffError, TypeError):
    """A value of the wrong type or dtype."""


class BadFile(CondiffError, OSError):
    """A file that is missing, truncated, tampered with, or of another kind."""


class Incompatible(CondiffError, ValueError):
    """Two parts that can't work together; the message names both and a pair that can."""


class Degenerate(CondiffError, ArithmeticError):
    """A quantity that doesn't exist at this time (a division by a coefficient that is zero)."""


class NonFinite(CondiffError, ArithmeticError):
    """NaN or infinity where a finite number is needed; the message says where."""


class MissingExtra(CondiffError, ImportError):
    """An optional dependency is absent; the message names the extra that brings it."""


def unknown(what: str, given: object, known: Iterable[str]) -> BadValue:
    """The error for an unknown name: ``unknown("solver", "euller", [...])`` suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return BadValue(f"unknown {what} {given!r}.{hint} Known: {', '.join(names) or '(none)'}.")


def require_extra(module: str, extra: str):
    """Import an optional module, or raise :class:`MissingExtra` with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs the package {module.split('.')[0]!r}, which the extra [{extra}] brings: "
            f"pip install 'condiff[{extra}]'"
        ) from error
