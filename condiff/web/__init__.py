"""A local web application for trying a model: settings, steps as they are taken, and comparisons with the same seed."""

from condiff.web.app import build_app
from condiff.web.guard import Guard
from condiff.web.limits import Limits
from condiff.web.server import open_source, serve
from condiff.web.settings import Settings, read_settings
from condiff.web.source import Made, Source
from condiff.web.uploads import Uploads

__all__ = [
    "Guard",
    "Limits",
    "Made",
    "Settings",
    "Source",
    "Uploads",
    "build_app",
    "open_source",
    "read_settings",
    "serve",
]
