"""Shapes that annotations promise are checked while the tests run; ``CONDIFF_UNCHECKED=1`` turns that off."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

if os.environ.get("CONDIFF_UNCHECKED") != "1":
    import shapes

    shapes.install()

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_global_seed():
    """The library never reads the global generator; tests that draw from it themselves start from one place."""
    torch.manual_seed(0)
