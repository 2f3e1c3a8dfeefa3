"""Write the table of a coverage page from the junit files of pytest.

::

    pytest benchmarks/coverage/test_mmdet.py --junitxml=work_dirs/coverage.xml
    python -m benchmarks.coverage.table docs/mmdet_coverage.md work_dirs/coverage.xml [FURTHER.xml]

FURTHER.xml: the results of an environment with further packages, for families that are not ok without them.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import ROOT, markdown, replace_section


def read(file: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the versions, and config and result by family."""
    rows, installed = {}, ""
    for node in ElementTree.parse(file).iter():
        found = {each.get("name"): each.get("value") for each in node.findall("properties/property")}
        installed = found.get("versions", installed)
        if "result" in found:
            rows[found["family"]] = found["config"], found["result"]
    return installed, rows


def text(files: list[Path]) -> str:
    (installed, rows), *further = map(read, files)
    lines = [f"Tested with {installed}."]
    for more, results in further:
        lines.append(f"*With further packages* means: {more}.")
        for family, (config, result) in results.items():
            before = rows.get(family, ("", ""))[1]
            if is_ok(result) and not is_ok(before):
                rows[family] = config, f"{result} with further packages; without: {before}"
    revision = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(revision, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    count = sum(is_ok(result) for _, result in rows.values())
    head = f"**{count} of {len(rows)} are ok**, {time.strftime('%Y-%m-%d')}, revision {revision}."
    table = [["", "config", "result"], *([f, f"`{config}`", r] for f, (config, r) in sorted(rows.items()))]
    return "\n\n".join([head, *lines, markdown(table)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    replace_section(args.page, "coverage", text(args.files))


if __name__ == "__main__":
    main()
