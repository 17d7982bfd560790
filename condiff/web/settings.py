"""What a page asks for: settings of one request, read from a message that may hold anything."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from condiff.errors import BadType, BadValue, unknown
from condiff.web.limits import Limits

MOST_SEED = 2**53 - 1  # the largest whole number that a browser keeps
MOST_VALUES = 4096  # of one condition


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample; None is the model's own choice.

    Args:
        labels: names of classes, taken in turn; all of them without.
        prompt, negative: of a pipeline that is told text.
        conditions: name -> a number, a list of them, or ``{"picture": ID}`` of a picture that was sent before.
        prefix, suffix: text that every sample begins and ends with.
        temperature, top_k, top_p: of predicted tokens.
        seed: sample i depends on ``seed + i`` only.
    """

    labels: tuple[str, ...] = ()
    prompt: str | None = None
    negative: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None
    suffix: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    solver: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    num: int = 1

    def as_json(self) -> dict[str, Any]:
        """What is given, as JSON-ready data; :func:`read_settings` reads it."""
        given = {k: v for k, v in asdict(self).items() if v not in (None, (), {})}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}

    def refuse_but(self, taken: Collection[str], what: str) -> None:
        """
        Raises:
            BadValue: something is given that isn't among what is taken.
        """
        extra = [name for name in self.as_json() if name not in taken]
        if extra:
            raise BadValue(f"{what} takes no {' and no '.join(extra)}")


def read_json(text: str) -> Any:
    """
    Raises:
        BadValue: text that isn't JSON, or holds NaN or infinity.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadValue("a message is a JSON object, and this one can't be read") from error


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def read_settings(data: Any, limits: Limits) -> Settings:
    """Settings from a message.

    Raises:
        BadType: a value of another type.
        BadValue: an unknown name, a value out of its range, or beyond what the server allows.
    """
    if not isinstance(data, dict):
        raise BadType(f"settings are an object, got {_shown(data)}")
    known = {f.name for f in fields(Settings)}
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise unknown("setting", name[:60], known)
        if value is not None:
            given[name] = READERS[name](name, value, limits)
    return Settings(**given)


def _shown(value: Any) -> str:
    return ascii(value)[:60]


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in a range."""
    if isinstance(value, float) and value.is_integer():  # 8.0 of a form
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadType(f"{name} is a whole number, got {_shown(value)}")
    if not low <= value <= high:
        raise BadValue(f"{name} must be from {low} to {high} here, got {_shown(value)}")
    return value


def number(name: str, value: Any) -> float:
    """A finite number, as a float32 can hold it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadType(f"{name} is a number, got {_shown(value)}")
    if not abs(value) < 1e30 or not math.isfinite(value):
        raise BadValue(f"{name} must be a finite number, got {_shown(value)}")
    return float(value)


def words(name: str, value: Any, most: int) -> str:
    """Text of at most so many characters."""
    if not isinstance(value, str):
        raise BadType(f"{name} is text, got {_shown(value)}")
    if len(value) > most:
        raise BadValue(f"{name} may have {most} characters here, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadValue(f"{name} holds half of a surrogate pair") from error
    return value


def _labels(name: str, value: Any, limits: Limits) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BadType(f"{name} is a list of classes, got {_shown(value)}")
    if len(value) > limits.num:
        raise BadValue(f"{name} may hold {limits.num} classes here, got {len(value)}")
    return tuple(words("a class", v, limits.text) for v in value)


def _conditions(name: str, value: Any, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadType(f"{name} is an object, got {_shown(value)}")
    return {key: _condition(key, one, limits) for key, one in value.items() if one is not None}


def _condition(name: str, value: Any, limits: Limits) -> Any:
    name = f"condition {name[:60]!r}"
    if isinstance(value, dict):
        if set(value) != {"picture"}:
            raise BadValue(f'{name} is a number, a list of them, or {{"picture": ID}}, got {_shown(value)}')
        return {"picture": words(name, value["picture"], 64)}
    if not isinstance(value, list):
        return number(name, value)
    if not 1 <= len(value) <= MOST_VALUES:
        raise BadValue(f"{name} is a list of 1 to {MOST_VALUES} numbers, got {len(value)}")
    return [number(name, v) for v in value]


READERS: dict[str, Any] = {
    "labels": _labels,
    "prompt": lambda name, value, limits: words(name, value, limits.text),
    "negative": lambda name, value, limits: words(name, value, limits.text),
    "conditions": _conditions,
    "prefix": lambda name, value, limits: words(name, value, limits.text),
    "suffix": lambda name, value, limits: words(name, value, limits.text),
    "temperature": lambda name, value, limits: number(name, value),
    "top_k": lambda name, value, limits: whole(name, value, 1, 2**31),
    "top_p": lambda name, value, limits: number(name, value),
    "solver": lambda name, value, limits: words(name, value, 64),
    "steps": lambda name, value, limits: whole(name, value, 1, limits.steps),
    "guidance": lambda name, value, limits: number(name, value),
    "seed": lambda name, value, limits: whole(name, value, 0, MOST_SEED),
    "num": lambda name, value, limits: whole(name, value, 1, limits.num),
}
