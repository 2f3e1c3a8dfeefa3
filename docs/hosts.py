"""Write the table of ``docs/benchmarks/projects.md``: the hosts, and the runs of ``benchmarks/projects``."""

import re
from pathlib import Path

from benchmarks.projects.models import DATE, PROJECTS
from dcnzoo.compat import host

PAGE = Path(__file__).with_name("benchmarks") / "projects.md"
PACKAGES = {  # that other sessions of nox install: versions, and what ran
    "OpenMMLab's packages": ("mmdet 3.3.0 and others", "2026-11-23: [training steps](../coverage.md)"),
    "torchvision": ("0.20.0, 0.25.0, 0.28.0, 0.29.1", "2026-11-25: Faster R-CNN"),
    "Ultralytics YOLO": ("8.2.103, 8.4.190", "training, prediction, export"),
}
HEAD = f"| `--provide` | project | revision | what ran ({DATE}) | not covered |\n|---|---|---|---|---|"


def table() -> str:
    """A row for each project."""
    rows = []
    for each in host.known().values():
        for name in each.projects:
            if project := PROJECTS.get(name):
                revision, ran = project.source.partition("@")[2][:7], project.ran
            else:
                revision, ran = PACKAGES[name]
            rows.append(f"| `{each.name}` | {name} | {revision} | {ran} | {each.missing} |")
    return "\n".join([HEAD, *rows])


def page(text: str) -> str:
    """The page with the table of today."""
    lines = f"<!-- hosts -->\n\n{table()}\n\n<!-- end of hosts -->"
    return re.sub("<!-- hosts -->.*<!-- end of hosts -->", lambda match: lines, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
