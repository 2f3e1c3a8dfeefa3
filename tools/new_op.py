"""Create the files of a new operator: ``python tools/new_op.py NAME``.

The files are copies of tools/new_op, an operator that multiplies channels by weights. It builds and passes
its tests unchanged; replace its code with yours. CONTRIBUTING.md describes each file.
"""

import argparse
import re
from pathlib import Path

from dcnzoo.cli import one_line_errors
from dcnzoo.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SKELETON = Path(__file__).with_suffix("")
# File, form, line: insert the line before the first line of this form with a later name, else after the last.
LISTS = (
    ("dcnzoo/ops/__init__.py", r"    from \.([a-z]\w*) import .*", "    from .NAME import NAME"),
    ("dcnzoo/ops/__init__.py", r'    "(\w+)",', '    "NAME",'),
    (
        "docs/ops/index.md",
        r"\| \[(\w+).*",
        "| [NAME](NAME.md) | multiplies channels by weights | ✓ | not yet run on a GPU |",
    ),
    ("docs/ops/index.md", r"([a-z]\w+)", "NAME"),
    ("docs/api.md", r"\.\. autofunction:: ((?:deform_|dcnv|ms_|flash|nms|roi)\w*)", ".. autofunction:: NAME"),
)


def add_line(path: Path, form: str, line: str, name: str) -> None:
    lines = path.read_text().splitlines()
    listed = [(i, match[1]) for i, text in enumerate(lines) if (match := re.fullmatch(form, text))]
    place = next((i for i, other in listed if other > name), listed[-1][0] + 1)
    lines.insert(place, line.replace("NAME", name))
    path.write_text("\n".join(lines) + "\n")


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "name", metavar="NAME", help="name of the function in dcnzoo.ops, such as deform_pool"
    )
    name = parser.parse_args().name
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UserError(f"NAME: expected lower-case words joined by _, got {name!r}")
    if (ROOT / "ops" / name).exists() or (ROOT / "dcnzoo" / "ops" / f"{name}.py").exists():
        raise UserError(f"NAME: expected a new name, got the existing operator {name!r}")
    camel = "".join(word.capitalize() for word in name.split("_"))
    for source in sorted(path for path in SKELETON.rglob("*.*") if path.suffix != ".pyc"):
        target = ROOT / str(source.relative_to(SKELETON)).replace("new_op", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("new_op", name).replace("NewOp", camel))
        print(f"written: {target.relative_to(ROOT)}")
    for path, form, line in LISTS:
        add_line(ROOT / path, form, line, name)
    print(
        f"Next: add a function draw_{name} to docs/figures/draw.py for the picture, then run: "
        f"make format; make test ARGS='-k {name}'"
    )


if __name__ == "__main__":
    main()
