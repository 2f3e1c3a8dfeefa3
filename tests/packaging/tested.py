"""Write the table of tested platforms in CONTRIBUTING.md.

::

    PYTHONPATH=. python tests/packaging/tested.py

The sessions compilers, arm, matrix and packaging of ``noxfile.py`` store their results in
``docs/tested.json``, a line for each combination that they tried. A new result replaces the previous one of
the same combination.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile

from dcnzoo.utils.files import write_text

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "tested.json"
COMBINATION = ("platform", "python", "torch", "compiler", "command")
FACTS = """
import json, platform, torch
from dcnzoo.ops import _library
versions = {"platform": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
print(json.dumps(versions | {"torch": torch.__version__, "library": str(_library.loaded["cpu"])}))
"""


def compiler_of(library: Path) -> str:
    """Return the compiler that a library names: its objects come after those of the C library."""
    with library.open("rb") as file:
        comments = ELFFile(file).get_section_by_name(".comment").data().decode().strip("\0").split("\0")
    name = "Clang" if "clang" in comments[-1] else "GCC"
    return f"{name} {re.findall(r'[0-9]+(?:[.][0-9]+)+', comments[-1])[-1]}"


def record(
    command: str,
    result: str,
    start: float,
    python: Sequence[str | Path],
    folder: Path,
    variables: Mapping[str, str],
) -> None:
    """Store the result of a trial in ``docs/tested.json``.

    Args:
        start: ``time.time()`` at the start of the trial.
        python: the command of the trial's Python, which reports the versions and the library that it loads.
        folder, variables: the working directory and the environment of that command.
    """
    facts = subprocess.run(
        [*python, "-c", FACTS], cwd=folder, env=variables, check=True, stdout=subprocess.PIPE, text=True
    )
    new = json.loads(facts.stdout.splitlines()[-1])
    new["compiler"] = compiler_of(Path(new.pop("library")))
    new |= {"command": command, "result": re.sub(r"(, \d+ deselected)? in [\d.]+s( \([\d:]+\))?", "", result)}
    new |= {"date": time.strftime("%Y-%m-%d"), "minutes": round((time.time() - start) / 60)}
    others = [row for row in read() if any(row[name] != new[name] for name in COMBINATION)]
    rows = sorted([*others, new], key=lambda row: [row[name] for name in COMBINATION])
    write_text(RECORDS, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def read() -> list[dict]:
    return json.loads(RECORDS.read_text()) if RECORDS.exists() else []


def rows() -> list[list[object]]:
    names = (*COMBINATION, "result", "date", "minutes")
    return [
        ["Python" if name == "python" else name for name in names],
        *([r[n] for n in names] for r in read()),
    ]


def main() -> None:
    from benchmarks.measure import markdown, replace_section

    replace_section(ROOT / "CONTRIBUTING.md", "tested", markdown(rows()))


if __name__ == "__main__":
    main()
