"""Sphinx's settings: Markdown pages, API pages from docstrings. ``make docs`` builds; warnings are errors."""

import os
import re
from pathlib import Path

import tomllib
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

from dcnzoo import __version__

logger = logging.getLogger(__name__)
DOCS = Path(__file__).resolve().parent
PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"].get("Repository")  # its address, from the first release on
# Pages that show a file of the repository: what leads to the file leads to the page
INCLUDED = {
    DOCS.parent / file: DOCS / page
    for file, page in {
        "CONTRIBUTING.md": "contributing.md",
        "SECURITY.md": "contributing.md",
        "model_zoo.md": "model_zoo.md",
    }.items()
}

project = "dcnzoo"
version = release = __version__
copyright = f"the dcnzoo authors. Version {version}"  # in the footer
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those in the file; tests/test_docs.py executes it
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100  # longer ones: a line for each argument
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # else the attributes of data classes appear twice
smartquotes = False  # would print the `--` of options outside code as a dash
html_math_renderer = "mathml"
html_theme = "furo"
html_extra_path = ["scene.html"]  # docs/screenshots.py writes it
html_theme_options = {"top_of_page_buttons": []}
if REPOSITORY:
    html_theme_options |= {
        "source_repository": REPOSITORY,
        "source_branch": "main",
        "source_directory": "docs/",
    }
html_title = f"dcnzoo {version}"


def relink(text: str, folder: Path, docname: str) -> str:
    """Links of a text that lies in ``folder``, for the page ``docname``.

    Links to other files than pages lead into the repository, or become plain text until it has an address.
    """
    here = (DOCS / docname).parent

    def replace(match: re.Match) -> str:
        file, mark, anchor = match["target"].partition("#")
        if "://" in file or not file:
            return match[0]
        target = (folder / file).resolve()
        target = INCLUDED.get(target, target)
        if DOCS not in target.parents:
            path = target.relative_to(DOCS.parent).as_posix()
            return f"[{match['text']}]({REPOSITORY}/blob/main/{path})" if REPOSITORY else match["text"]
        return f"[{match['text']}]({os.path.relpath(target, here)}{mark}{anchor})"

    return re.sub(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)", replace, text)


def relink_page(app, docname: str, source: list[str]) -> None:
    if (DOCS / f"{docname}.md").exists():
        source[0] = relink(source[0], (DOCS / docname).parent, docname)


def relink_included(app, path: Path, docname: str, source: list[str]) -> None:
    source[0] = relink(source[0], (DOCS / path).resolve().parent, docname)


def mathml(node, display: str) -> str:
    text = convert(node.astext(), display=display)
    if "\\" in text:  # a command that is not known is left as it is
        logger.warning("not understood: %s", node.astext(), location=node)
    return text


def write_inline_math(translator, node) -> None:
    translator.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def write_block_math(translator, node) -> None:
    style = 'tabindex="0" style="margin: 1em 0; overflow-x: auto"'
    translator.body.append(f"<div {style}>{mathml(node, 'block')}</div>\n")
    raise nodes.SkipNode


def make_accessible(app, error: Exception | None) -> None:
    """Name landmarks, give captions a level, and let the keyboard scroll code and tables: Furo does not."""
    for file in Path(app.outdir).rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        text = re.sub(r'(<pre|<div class="table-wrapper[^"]*")(?! tabindex)', r'\1 tabindex="0"', text)
        text = re.sub(r'<th class="head[^"]*"><p></p></th>', "<td></td>", text)
        # lists of arguments have no <dt>
        text = re.sub(r"(?s)<dl>(\s*<dd>.*?)</dl>", r'<ul style="list-style: none">\1</ul>', text)
        text = re.sub(r'<dd>(<em class="sig-param">.*)</dd>', r"<li>\1</li>", text)
        text = re.sub(r'role="heading"(?! aria)', 'role="heading" aria-level="2"', text)
        text = re.sub(r'<aside class="(sidebar|toc)-drawer"(?! aria)', r'\g<0> aria-label="\1"', text)
        # short words of code do not break after a hyphen; the first column of a wide table stays in view
        text = re.sub(r'<span class="pre"(?=>[^<]{1,40}<)', r'\g<0> style="white-space: nowrap"', text)
        first = "position: sticky; left: 0; background: var(--color-background-primary)"
        text = text.replace("</head>", f"<style>.table-wrapper tr > :first-child {{{first}}}</style></head>")
        file.write_text(text, encoding="utf-8")


def setup(app) -> None:
    # browsers read MathML by themselves; Sphinx's default is a script from another server
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_block_math, None))
    app.connect("source-read", relink_page)
    app.connect("include-read", relink_included)
    app.connect("build-finished", make_accessible)
