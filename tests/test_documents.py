"""The documents are true: their Python runs, its tests pass, the commands, links and files that they name exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOLD = ("README.md", "CONTRIBUTING.md")
RUN = (
    *TOLD,
    *sorted(str(p.relative_to(ROOT)) for room in ("guide", "methods") for p in ROOT.glob(f"docs/{room}/*.md")),
)
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if "_build" not in path.parts
)
# Long trainings are shortened; nothing else of a block is changed.
SHORTER = {"steps=500": "steps=2"}


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[tuple[int, str]]:
    """``(line, content)`` of the fenced blocks of a language."""
    text = text_of(name)
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start()].count("\n") + 2, m.group(1)) for m in found]


# Entries of methods


def test_the_entry_of_a_new_method_is_one():
    from condiff.methods import Entry

    ((_, text),) = blocks("CONTRIBUTING.md", "toml")
    entry = Entry(slug="min-snr", **tomllib.loads(text))
    assert entry.arxiv in entry.bibtex


def test_the_readme_lists_every_method():
    from condiff.methods import ENTRIES

    missing = [e.slug for e in ENTRIES.values() if f"| `{e.slug}` | [{e.arxiv}]" not in text_of("README.md")]
    assert not missing


# Python


def test_python_blocks_run_and_their_tests_pass(tmp_path):
    """Each block is a module of its own, imported and tested by pytest in another process, warnings as errors."""
    written = 0
    for name in RUN:
        stem = re.sub(r"\W", "_", name.removesuffix(".md").lower())
        for line, code in blocks(name, "python"):
            for long, short in SHORTER.items():
                code = code.replace(long, short)
            (tmp_path / f"test_{stem}_line_{line}.py").write_text(code, encoding="utf-8")
            written += 1
    assert written >= 12
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-W", "ignore::DeprecationWarning", "."]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", TOLD)
def test_every_part_that_is_shown_has_a_test(name):
    for line, code in blocks(name, "python"):
        if re.search(r"^class \w+\((Solver|Guided|Spec)\)", code, re.MULTILINE):
            assert "\ndef test_" in code, f"{name}:{line} shows a part without its test"


# Commands


def shown_commands() -> list[str]:
    """The ``condiff ...`` lines of all console blocks, and those in backticks, without comments."""
    found = []
    for name in PAGES:
        for _, block in blocks(name, "console"):
            found += [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ condiff ")]
        found += [m.group(1) for m in re.finditer(r"`(condiff (?!/)[a-z]+ [^`\n]*)`", text_of(name))]
    return sorted({line.split("  #")[0].strip() for line in found})


@cache
def help_of(command: str) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    call = [sys.executable, "-m", "condiff.cli.main", command, "--help"]
    return subprocess.run(call, capture_output=True, text=True, env=environment, check=True).stdout


def test_commands_that_are_shown_exist_with_their_flags():
    shown = shown_commands()
    assert len(shown) >= 10
    for line in shown:
        _, command, *rest = shlex.split(line)
        for flag in (word.split("=")[0] for word in rest if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", help_of(command)), (
                f"{line!r}: no {flag} in {command} --help"
            )


def test_make_targets_that_are_shown_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in PAGES:
        for target in re.findall(r"(?:^\$ |`)make ([a-z]+)", text_of(name), re.MULTILINE):
            assert target in targets, f"{name}: make {target}"


# Formulas


@pytest.mark.parametrize("name", PAGES)
def test_formulas_can_be_written_as_mathml(name):
    """By docutils, which knows most of LaTeX but not all: a page with another command doesn't build."""
    mathml = pytest.importorskip("docutils.utils.math.latex2mathml", reason="pages are built with the docs extra")
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text_of(name), flags=re.DOTALL | re.MULTILINE)
    for block, inline in re.findall(r"\$\$(.+?)\$\$|(?<!\$)\$([^$]+?)\$", prose, re.DOTALL):
        mathml.tex2mathml(block or inline, as_block=bool(block))


# Links, files, names


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if re.match(r"https?://|#|mailto:", target) or not target:
            continue
        path = (ROOT / name).parent / target.split("#")[0]
        assert path.exists(), f"{name}: {target} does not exist"


@pytest.mark.parametrize("name", PAGES)
def test_files_of_the_package_that_are_named_exist(name):
    """Except those that the contributor's examples would add."""
    new = ("plms", "temper", "angle", "min_snr", "min-snr")
    for path in re.findall(r"`((?:condiff|tests|docs|benchmarks)/[\w./-]+)`", text_of(name)):
        if not any(word in path for word in new):
            assert (ROOT / path).exists() or "_build" in path, f"{name}: {path} does not exist"


@pytest.mark.parametrize("name", PAGES)
def test_documents_speak_of_the_project_only(name):
    text = text_of(name)
    for pattern in (
        r"/work/",
        r"/home/\w+",
        r"/tmp/",
        r"/Users/",
        r"\.\./shared",
        r"\b[Ii]ssue #?\d",
        r"TODO|FIXME|XXX",
    ):
        assert not re.search(pattern, text), f"{name}: {pattern}"
