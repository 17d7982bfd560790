"""Sphinx configuration: furo, pages executed by myst-nb, everything offline."""

import sys
from pathlib import Path

import condiff

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "condiff"
author = "the condiff authors"
copyright = "2026, the condiff authors"
version = release = condiff.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "condiff_docs",
    "compositions",
]
html_theme = "furo"
html_title = "condiff"
html_static_path = ["_static"]
html_css_files = ["condiff.css"]
html_math_renderer = "mathml"  # ours, in _ext: no script, no network
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / ".jupyter_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["mystnb.unknown_mime_type"]
