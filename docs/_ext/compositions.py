"""``{compositions}``: the table of what goes with what, as it comes with this version.

A refused pair shows the number of its reason, in the list below the table. Headings stand upright and the first column
stays in sight (``condiff.css``), so that two dozen solvers fit beside each other.
"""

from __future__ import annotations

import re
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
        columns = list(next(iter(rows.values())))
        why = _reasons(rows)
        numbers = {reason: k for k, reason in enumerate(dict.fromkeys(why.values()), start=1)}
        body = [[nodes.entry("", nodes.paragraph(text=name), classes=["name"])] for name in rows]
        for line, (name, row) in zip(body, rows.items(), strict=True):
            line += [_cell(row[c][0], numbers.get(why.get((name, c), ""))) for c in columns]
        head = [nodes.entry("", nodes.paragraph(text=name)) for name in ("", *columns)]
        table = _table(head, body)
        table.insert(0, nodes.title(text=self.arguments[0].replace(" x ", " × ")))
        out: list[nodes.Node] = [nodes.container("", table, classes=["compositions"])]
        if numbers:
            items = [nodes.list_item("", nodes.paragraph(text=reason)) for reason in numbers]
            named = "; … is the name of its row or column" if "…" in "".join(numbers) else ""
            out.append(nodes.paragraph(text=f"Numbers say why a pair is refused{named}:"))
            out.append(nodes.enumerated_list("", *items, enumtype="arabic", suffix=".", classes=["reasons"]))
        return out


def _reasons(rows: Mapping[str, Mapping[str, list[str]]]) -> dict[tuple[str, str], str]:
    """``(row, column)`` -> why it is refused; reasons that differ by the name of the row or column become one."""
    cells = {(r, c): why for r, row in rows.items() for c, (kind, why) in row.items() if kind == "refused"}
    for axis in (1, 0):
        blank = {pair: re.sub(rf"(?<!\w){re.escape(pair[axis])}(?!\w)", "…", why) for pair, why in cells.items()}
        shared = {text for text in blank.values() if len({cells[k] for k, one in blank.items() if one == text}) > 1}
        cells = {pair: blank[pair] if blank[pair] in shared else why for pair, why in cells.items()}
    return {pair: _rounded(why) for pair, why in cells.items()}


def _rounded(text: str) -> str:
    return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", text)


def _cell(kind: str, reason: int | None) -> nodes.entry:
    text, name = MARKS[kind] if kind in MARKS else (str(reason), "refused")
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
