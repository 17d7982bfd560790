"""``{compositions}``: the table of what goes with what, as it comes with this version.

A refused pair shows the number of its reason, in the list below the table. Headings stand upright and the first column
stays in sight (``condiff.css``), so that eighteen solvers fit beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from condiff.methods.composition import stored

MARKS = {
    "runs": ("✓", "runs"),
    "runs below t = 1": ("t < 1", "partly"),
    "runs between the ends": ("0 < t < 1", "partly"),
}


class Compositions(Directive):
    """One pair of axes: ``{compositions} process x solver``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        rows = stored()[self.arguments[0]]
        reasons: dict[str, int] = {}
        body = [[nodes.entry("", nodes.paragraph(text=name), classes=["name"])] for name in rows]
        for line, row in zip(body, rows.values(), strict=True):
            line += [_cell(outcome, reasons) for outcome in row.values()]
        head = [nodes.entry("", nodes.paragraph(text=name)) for name in ("", *next(iter(rows.values())))]
        out: list[nodes.Node] = [nodes.container("", _table(head, body), classes=["compositions"])]
        if reasons:
            items = [nodes.list_item("", nodes.paragraph(text=why)) for why in reasons]
            out.append(nodes.paragraph(text="Numbers say why a pair is refused:"))
            out.append(nodes.enumerated_list("", *items, enumtype="arabic", suffix=".", classes=["reasons"]))
        return out


def _cell(outcome: list[str], reasons: dict[str, int]) -> nodes.entry:
    kind, why = outcome
    text, name = MARKS[kind] if kind in MARKS else (str(reasons.setdefault(why, len(reasons) + 1)), "refused")
    return nodes.entry("", nodes.paragraph(text=text), classes=[name])


def _table(head: list[nodes.entry], body: list[list[nodes.entry]]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=10) for _ in head]
    group += nodes.thead("", nodes.row("", *head))
    group += nodes.tbody("", *(nodes.row("", *line) for line in body))
    return nodes.table("", group)


def setup(app: Any) -> Mapping[str, Any]:
    app.add_directive("compositions", Compositions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
