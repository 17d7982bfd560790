"""The examples in the docstrings say what happens."""

import doctest
import importlib
import pkgutil

import pytest

ROOMS = [importlib.import_module(f"condiff.{room}") for room in ("data", "metrics")]
MODULES = [f"{r.__name__}.{m.name}" for r in ROOMS for m in pkgutil.iter_modules(r.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
