"""Write the table of ``docs/hosts.md`` from ``dcnzoo/compat/hosts``: ``python docs/hosts.py``."""

import re
from pathlib import Path

from dcnzoo.compat import host

PAGE = Path(__file__).with_name("hosts.md")
HEAD = "| `--provide` | project | run | not covered |\n|---|---|---|---|"


def table() -> str:
    """A row for each project whose own code has run, and a sentence that names the others."""
    rows, others = [], []
    for each in host.known().values():
        for project, run in each.projects.items():
            if run:
                rows.append(f"| `{each.name}` | {project} | {run} | {each.missing} |")
            else:
                others.append(f"{project} (`{each.name}`)")
    note = "The code of these projects has not run; tests run small modules with their imports and calls"
    return "\n".join([HEAD, *rows, "", f"{note}: {', '.join(others)}."])


def page(text: str) -> str:
    """The page with the table of today."""
    lines = f"<!-- hosts -->\n\n{table()}\n\n<!-- end of hosts -->"
    return re.sub("<!-- hosts -->.*<!-- end of hosts -->", lambda match: lines, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
