"""The guide to the command line shows every command."""

import re
from pathlib import Path

import pytest

from condiff.cli import main

ROOT = Path(__file__).parents[2]


def commands():
    return re.findall(r'command\("([a-z0-9-]+)"\)', Path(main.__file__).read_text())


@pytest.mark.parametrize("name", commands())
def test_the_guide_has_a_section_for_it(name):
    text = (ROOT / "docs" / "guide" / "cli.md").read_text()
    assert f"## condiff {name}\n\n" in text and f"```{{command}} {name}\n" in text


def test_the_architecture_names_all_of_them():
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.search(r"`condiff (train, [a-z0-9, -]+)`", text)
    assert listed is not None and set(listed[1].split(", ")) == set(commands())
