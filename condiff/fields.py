"""Fields of configurations, checked when one is made: numbers are numbers, flags flags, names names.

What a value means is checked by each class; that it is of the declared type, and a number finite, is the same
everywhere. Only plain annotations are read: ``float``, ``int``, ``bool``, ``str``, alone or ``| None``.
"""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral, Real
from typing import Any, TypeVar

from condiff.errors import BadType, BadValue

Class = TypeVar("Class", bound=type)
KINDS: dict[str, tuple[type, str]] = {
    "float": (Real, "a number"),
    "int": (Integral, "an integer"),
    "bool": (bool, "True or False"),
    "str": (str, "a name"),
}


def checked(cls: Class) -> Class:
    """A class whose dataclass fields are checked before its own ``__post_init__`` runs. Below ``@dataclass``."""
    own = cls.__dict__.get("__post_init__")
    if own is None and hasattr(cls, "__post_init__"):
        return cls  # the inherited one checks all fields

    def __post_init__(self: Any) -> None:
        check_fields(self)
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]: a class, not a method call
    return cls


def check_fields(config: Any) -> None:
    """
    Raises:
        BadType: a value of another type than declared.
        BadValue: NaN, or an infinite number where the field's metadata doesn't say ``infinite`` (nor its default).
    """
    for field in dataclasses.fields(config):
        names = [name.strip() for name in str(field.type).split("|")]
        value, plain = getattr(config, field.name, None), [name for name in names if name != "None"]
        if len(plain) == 1 and plain[0] in KINDS and not (value is None and "None" in names):
            _check(f"{type(config).__name__}({field.name}=...)", plain[0], value, field)


def _check(where: str, kind: str, value: Any, field: dataclasses.Field[Any]) -> None:
    wanted, words = KINDS[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise BadType(f"{where} takes {words}, got {value!r}")
    if kind != "float" or math.isfinite(value):
        return
    default = isinstance(field.default, float) and math.isinf(field.default)
    if math.isnan(value) or not (default or field.metadata.get("infinite")):
        raise BadValue(f"{where} must be finite, got {value}")
