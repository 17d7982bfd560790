"""The catalogue: every method's facts, readable without importing torch."""

from __future__ import annotations

import importlib
import json
import tomllib
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from condiff.errors import BadValue, unknown


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Facts about one method; its code is the module ``condiff.methods.<slug with underscores>``.

    Args:
        slug: the name of its file in ``entries``, of its page and of its command.
        trains: whether it has a recipe for ``condiff train``; others are samplers, guidance or tools for trained
            models.
    """

    slug: str
    title: str
    arxiv: str
    family: str
    trains: bool
    summary: str
    bibtex: str

    @property
    def module(self) -> str:
        return "condiff.methods." + self.slug.replace("-", "_")

    def recipe(self, facts: Any) -> Any:
        """The method's recipe on data of the given facts.

        Raises:
            BadValue: a method that trains nothing.
        """
        if not self.trains:
            raise BadValue(f"{self.slug} trains no model of its own, it is used on trained ones: {self.summary}")
        return importlib.import_module(self.module).recipe(facts)

    def verdict(self) -> dict[str, Any] | None:
        """The stored outcome of its reproduction, or None when it hasn't been run."""
        path = resources.files("condiff.methods").joinpath("verdicts", f"{self.slug}.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def as_dict(self) -> dict[str, Any]:
        """What ``condiff methods --json`` prints."""
        facts = asdict(self)
        del facts["bibtex"]
        return {**facts, "verdict": self.verdict()}


def _read() -> dict[str, Entry]:
    """The entries of ``entries/<slug>.toml``, baselines first, then by family and slug."""
    folder = resources.files("condiff.methods").joinpath("entries")
    entries = [
        Entry(slug=path.name.removesuffix(".toml"), **tomllib.loads(path.read_text(encoding="utf-8")))
        for path in folder.iterdir()
        if path.name.endswith(".toml")
    ]
    entries.sort(key=lambda entry: (entry.family != "baseline", entry.family, entry.slug))
    return {entry.slug: entry for entry in entries}


ENTRIES = _read()


def find(slug: str) -> Entry:
    """The entry of a slug.

    Raises:
        BadValue: an unknown slug, with the nearest ones.
    """
    if slug not in ENTRIES:
        raise unknown("method", slug, ENTRIES)
    return ENTRIES[slug]
