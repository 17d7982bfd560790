"""``{compositions}``: the table of what goes with what, as it comes with this version; refusals are numbered below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from condiff.methods.composition import stored

MARKS = {"runs": "yes", "runs below t = 1": "t < 1", "runs between the ends": "0 < t < 1"}


class Compositions(Directive):
    """One pair of axes: ``{compositions} process x solver``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        rows = stored()[self.arguments[0]]
        reasons: dict[str, int] = {}
        head = ["", *next(iter(rows.values()))]
        body = [[name, *(_cell(outcome, reasons) for outcome in row.values())] for name, row in rows.items()]
        items = [nodes.list_item("", nodes.paragraph(text=why)) for why in reasons]
        listed = nodes.enumerated_list("", *items, enumtype="arabic", suffix=".") if items else None
        wide = nodes.container("", _table(head, body), classes=["wide"])
        return [wide] if listed is None else [wide, nodes.paragraph(text="Refused, because:"), listed]


def _cell(outcome: list[str], reasons: dict[str, int]) -> str:
    kind, why = outcome
    if kind != "refused":
        return MARKS[kind]
    return f"no ({reasons.setdefault(why, len(reasons) + 1)})"


def _table(head: list[str], rows: list[list[str]]) -> nodes.table:
    def line(cells: list[str]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in cells))

    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=10) for _ in head]
    group += nodes.thead("", line(head))
    group += nodes.tbody("", *(line(row) for row in rows))
    return nodes.table("", group)


def setup(app: Any) -> Mapping[str, Any]:
    app.add_directive("compositions", Compositions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
