"""How Sphinx builds these pages."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "Flask-LLMStream"
copyright = "2026, the Flask-LLMStream authors"
release = version = installed_version("flask-llmstream")

extensions = ["myst_parser", "sphinx.ext.autodoc", "tables"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # no inventories of other projects: the build needs no network
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = project
