"""What the pages need beyond Sphinx: maths without a network, and facts that are read when the pages are built.

* Maths is written as MathML by docutils itself; a page needs no script and no server for it.
* ``{verdict} slug``: the table of a stored reproduction.
* ``{cite} slug``: its BibTeX entry.
* ``{command} train``: what ``condiff train --help`` prints.
* ``{methods}``: the catalogue as a table.
"""

from __future__ import annotations

import html
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

from condiff.methods import ENTRIES, find

# Maths

MATHML = "http://www.w3.org/1998/Math/MathML"
APPLY = "\u2061"  # the invisible operator of function application
ACCENTS = set("ˆˉ˙¨˜ˇ˘´`")


def inline_math(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def block_math(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, as_block: bool) -> str:
    """A formula as MathML; what docutils doesn't know (``\\big``, say, but ``\\bigl``) is a warning with its place."""
    try:
        return _polished(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s In: %s", error, node.astext(), location=node)
        return html.escape(node.astext())


def _polished(formula: str) -> str:
    """Two things that docutils leaves to chance.

    The index of ``\\hat{x}_0`` stands beside the letter, not below as that of a sum does; ``\\log q`` has a space.
    """
    ElementTree.register_namespace("", MATHML)
    tree = ElementTree.fromstring(formula.replace("&ApplyFunction;", APPLY))
    for node in tree.iter(f"{{{MATHML}}}munderover"):
        base, below, above = node
        if above.text in ACCENTS:
            node.tag = f"{{{MATHML}}}msub"
            over = ElementTree.Element(f"{{{MATHML}}}mover", accent="true")
            over.extend([base, above])
            node[:] = [over, below]
    for row in tree.iter():
        for node, after in pairwise(row):
            if node.text == APPLY and after.text != "(":
                node.tag, node.text = f"{{{MATHML}}}mspace", None
                node.set("width", "0.17em")
    return ElementTree.tostring(tree, encoding="unicode")


# Docstrings

SHAPE = re.compile(r"(?<=[(, ])\*(?=\w+[(),])")  # the star of a shape: (n, *shape)


def escape_shapes(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A star before a name is emphasis to docutils, unless it stands in a literal."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        lines[i] = "``".join(SHAPE.sub(r"\\*", part) if k % 2 == 0 else part for k, part in enumerate(parts))


# Directives


class Verdict(Directive):
    """The comparisons of ``condiff/methods/verdicts/<slug>.json`` with their outcome, or that there is none yet."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        slug = self.arguments[0]
        stored = find(slug).verdict()
        if stored is None:
            text = f"This claim hasn't been measured on a reference machine yet: condiff reproduce {slug} measures it."
            return [nodes.paragraph(text=text)]
        seeds = len(stored["seeds"])
        where = f"{stored['notes']}; {seeds} seeds, {stored['seconds']:.0f} s on {stored['machine']}."
        where = where[0].upper() + where[1:]
        out: list[nodes.Node] = [nodes.paragraph("", "", nodes.strong(text=stored["verdict"].capitalize() + ":"))]
        out[0] += nodes.Text(f" {stored['claim']}. {where}")
        rows = []
        for c in stored["comparisons"]:
            better = "lower" if c["lower_is_better"] else "higher"
            holds = ("holds" if c["holds"] else "does not hold") + f" ({c['gain']:+.1%})"
            rows.append(
                (
                    c["name"],
                    _spread(c["baseline_name"], c["baseline"]),
                    _spread(c["ours_name"], c["ours"]),
                    better,
                    holds,
                )
            )
        return [*out, table(("measured", "baseline", "ours", "expected", "verdict"), rows)]


def _spread(name: str, values: Sequence[float]) -> str:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{name}: {statistics.fmean(values):.4g} ± {std:.2g}"


class Cite(Directive):
    """The BibTeX entry of a method."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = find(self.arguments[0]).bibtex
        return [nodes.literal_block(text, text, language="bibtex")]


class Command(Directive):
    """The help of a command, as a terminal of 92 columns shows it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "condiff.cli.main", self.arguments[0], "--help"]
        environment = {**os.environ, "COLUMNS": "92", "NO_COLOR": "1", "TERM": "dumb"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        text = done.stdout.strip()
        return [nodes.literal_block(text, text, language="text")]


class Methods(Directive):
    """The catalogue: slug, paper, what it is, whether its claim was reproduced."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for entry in ENTRIES.values():
            stored = entry.verdict()
            page = nodes.reference("", entry.slug, internal=True, refuri=f"{entry.slug}.html")
            paper = nodes.reference("", entry.arxiv, refuri=f"https://arxiv.org/abs/{entry.arxiv}")
            rows.append((page, entry.title, paper, entry.summary, stored["verdict"] if stored else "not run"))
        return [table(("method", "paper", "arXiv", "what it is", "reproduction"), rows)]


def table(head: Sequence[str], rows: Sequence[Sequence[str | nodes.Node]]) -> nodes.table:
    """A plain table of texts and links."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=20) for _ in head]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group)


def _row(cells: Sequence[str | nodes.Node]) -> nodes.row:
    def paragraph(cell: str | nodes.Node) -> nodes.paragraph:
        return nodes.paragraph(text=html.unescape(cell)) if isinstance(cell, str) else nodes.paragraph("", "", cell)

    return nodes.row("", *(nodes.entry("", paragraph(cell)) for cell in cells))


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(inline_math, None), block_renderers=(block_math, None))
    app.connect("autodoc-process-docstring", escape_shapes)
    for name, directive in (("verdict", Verdict), ("cite", Cite), ("command", Command), ("methods", Methods)):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
