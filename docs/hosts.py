"""Write the table of ``docs/benchmarks/projects.md`` from ``dcnzoo/compat/hosts``."""

import re
from pathlib import Path

from dcnzoo.compat import host

PAGE = Path(__file__).with_name("benchmarks") / "projects.md"
DATE = "2026-11-26"  # of rows without another
HEAD = f"| `--provide` | project | revision | what ran ({DATE}) | not covered |\n|---|---|---|---|---|"


def table() -> str:
    """A row for each project."""
    rows = []
    for each in host.known().values():
        for project, run in each.projects.items():
            revision = run.revision[:7] if re.fullmatch("[0-9a-f]{40}", run.revision) else run.revision
            ran = run.ran.replace("equal to its own PyTorch code", "*equal*").replace("](", "](../")
            date = "" if run.date == DATE else f"{run.date}: "
            rows.append(f"| `{each.name}` | {project} | {revision} | {date}{ran} | {each.missing} |")
    return "\n".join([HEAD, *rows])


def page(text: str) -> str:
    """The page with the table of today."""
    lines = f"<!-- hosts -->\n\n{table()}\n\n<!-- end of hosts -->"
    return re.sub("<!-- hosts -->.*<!-- end of hosts -->", lambda match: lines, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
