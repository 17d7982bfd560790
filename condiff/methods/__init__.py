"""Methods: one module per paper. The catalogue is readable without torch; the rest is imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from condiff.methods.catalogue import ENTRIES, Entry, find

_LAZY = {"Recipe": "recipe", "Sampler": "recipe", "Facts": "facts", "Reproduction": "reproduction"}

__all__ = ["ENTRIES", "Entry", "find", *_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]: imported on first use


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"condiff.methods.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'condiff.methods' has no attribute {name!r}")
