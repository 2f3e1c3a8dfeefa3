"""Sphinx's settings: Markdown pages, API pages from docstrings. ``make docs`` builds; warnings are errors."""

import re
from pathlib import Path

from dcnzoo import __version__

DOCS = Path(__file__).parent

project = "dcnzoo"
copyright = "the dcnzoo authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # the signature shows them
autodoc_preserve_defaults = True
html_theme = "furo"
html_title = f"dcnzoo {version}"


def unlink_sources(app, docname: str, source: list[str]) -> None:
    """Turns links to files outside docs/, which work where the repository is read, into plain text."""
    folder = (DOCS / docname).parent

    def is_page(target: str) -> bool:
        path = (folder / target.partition("#")[0]).resolve()
        return "://" in target or target.startswith("#") or DOCS in path.parents

    def replace(match: re.Match) -> str:
        return match[0] if is_page(match["target"]) else match["text"]

    source[0] = re.sub(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)", replace, source[0])


def setup(app) -> None:
    app.connect("source-read", unlink_sources)
