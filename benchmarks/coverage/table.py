"""Write a section of docs/coverage.md from the junit files of pytest.

::

    pytest benchmarks/coverage/test_mmdet.py --junitxml=work_dirs/coverage.xml
    python -m benchmarks.coverage.table mmdet work_dirs/coverage.xml [FURTHER.xml]

FURTHER.xml: the results of an environment with further packages, for families that are not ok without them.
"""

from __future__ import annotations

import argparse
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from itertools import groupby
from pathlib import Path

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import ROOT, replace_section


def read(file: Path) -> tuple[str, dict[str, str]]:
    """Return the versions, and the result by family."""
    results, installed = {}, ""
    for node in ElementTree.parse(file).iter():
        values = {each.get("name"): each.get("value") for each in node.findall("properties/property")}
        installed = values.get("versions", installed)
        if "result" in values:
            results[values["family"]] = values["result"]
    return installed, results


def text(files: list[Path]) -> str:
    (installed, results), *further = map(read, files)
    lines = [f"Tested with {installed}."]
    for more, others in further:
        lines.append(f"*With further packages* means: {more}.")
        for family, result in others.items():
            before = results.get(family, "")
            if is_ok(result) and not is_ok(before):
                results[family] = f"{result} with further packages; without: {before}"
    revision = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(revision, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    count = sum(map(is_ok, results.values()))
    head = f"**{count} of {len(results)} are ok**, {time.strftime('%Y-%m-%d')}, revision {revision}."
    return "\n\n".join([head, *lines, by_result(results)])


def by_result(results: dict[str, str]) -> str:
    """List the families of each result, except of *ok*, to which a config may add its layers (*ok: …*)."""
    plain = {family for family, result in results.items() if result.split(":")[0] == "ok"}

    def key(family: str) -> tuple[bool, str, str]:
        return not is_ok(results[family]), results[family], family

    groups = groupby(sorted(results.keys() - plain, key=key), key=results.__getitem__)
    lines = (f"- **{result}**: {', '.join(families)}" for result, families in groups)
    return "\n".join([*lines, f"- **ok**: all others ({len(plain)})"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", help="mmdet, deformable, export or openmmlab")
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    replace_section(ROOT / "docs/coverage.md", args.section, text(args.files))


if __name__ == "__main__":
    main()
