"""What commands print: JSON for programs, or lines for people."""

from __future__ import annotations

import json
import sys
from typing import Any


def show_json(value: Any) -> None:
    """Print JSON and nothing else to standard output."""
    json.dump(value, sys.stdout, indent=1)
    print()


def note(text: str, *, quiet: bool = False) -> None:
    """A line for a person; to standard error when standard output belongs to a program."""
    print(text, file=sys.stderr if quiet else sys.stdout, flush=True)
