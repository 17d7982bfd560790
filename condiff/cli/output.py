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


def tree(value: Any, indent: int = 0) -> str:
    """Nested configuration as indented ``key: value`` lines; a part's name stands on its key's line."""
    lines = []
    for key, item in value.items():
        if key == "part":
            continue
        pad = "  " * indent
        if isinstance(item, dict) and item:
            rest = {k: v for k, v in item.items() if k != "part"}
            lines.append(f"{pad}{key}: {item.get('part', '')}".rstrip())
            if rest:
                lines.append(tree(rest, indent + 1))
        else:
            lines.append(f"{pad}{key}: {item}")
    return "\n".join(lines)
