"""Write the table of ``docs/hosts.md`` from ``dcnzoo/compat/hosts``: ``python docs/hosts.py``."""

import re
from pathlib import Path

from dcnzoo.compat import host

PAGE = Path(__file__).with_name("hosts.md")
HEAD = "| `--provide` | project | revision | what ran | not covered |\n|---|---|---|---|---|"


def table() -> str:
    """A row for each project."""
    rows = []
    for each in host.known().values():
        for project, run in each.projects.items():
            revision = run.revision[:7] if re.fullmatch("[0-9a-f]{40}", run.revision) else run.revision
            rows.append(
                f"| `{each.name}` | {project} | {revision} | {run.date}: {run.ran} | {each.missing} |"
            )
    return "\n".join([HEAD, *rows])


def page(text: str) -> str:
    """The page with the table of today."""
    lines = f"<!-- hosts -->\n\n{table()}\n\n<!-- end of hosts -->"
    return re.sub("<!-- hosts -->.*<!-- end of hosts -->", lambda match: lines, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
