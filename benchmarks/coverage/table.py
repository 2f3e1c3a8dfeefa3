"""Write the table of a coverage page from the junit files of pytest.

::

    pytest benchmarks/coverage/test_export.py --group 1/12 --junitxml=work_dirs/coverage.xml
    python -m benchmarks.coverage.table docs/export_coverage.md [work_dirs/coverage.xml [FURTHER.xml]]

FURTHER.xml: the results of an environment with further packages, for families that are not ok without them.

Results are kept in a JSON file next to the page, with the version (a hash) of the code that they depend on.
The table shows a result as current only if this code has not changed.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import code_version, markdown, replace_section
from dcnzoo.utils.files import write_text

Rows = dict[str, dict[str, str]]  # family → config, result, code, depends, versions, date


def read(file: Path) -> Rows:
    rows, installed = {}, ""
    for node in ElementTree.parse(file).iter():
        found = {each.get("name"): each.get("value") for each in node.findall("properties/property")}
        installed = found.get("versions", installed)
        if "result" in found:
            date = time.strftime("%Y-%m-%d")
            rows[found.pop("family")] = {**found, "versions": installed, "date": date}
    return rows


def merged(files: list[Path]) -> Rows:
    """Return the results of the first file, and of the others for families that are not ok there."""
    first, *further = map(read, files)
    for results in further:
        for family, row in results.items():
            before = first.get(family, {}).get("result", "")
            if is_ok(row["result"]) and not is_ok(before):
                result = f"{row['result']} with further packages; without: {before}"
                first[family] = {**row, "result": result}
    return first


@functools.cache
def _current(depends: str) -> str:
    return code_version(depends.split())


def text(rows: Rows) -> str:
    table, tested, current = [["", "config", "result"]], {}, 0
    for family, row in sorted(rows.items()):
        result = row["result"]
        if result.startswith("out of scope"):
            current += 1
        elif row["code"] == _current(row["depends"]):
            current += 1
            tested[row["versions"]] = max(tested.get(row["versions"], ""), row["date"])
        else:
            result = f"not measured with this version; {row['date']}: {result}"
        table.append([family, f"`{row['config']}`", result])
    ok = sum(is_ok(row[2]) for row in table[1:])
    head = f"**{ok} of {len(rows)} are ok**; {len(rows) - current} were not measured with this version."
    return "\n\n".join([head, *(f"Tested until {d} with {v}." for v, d in tested.items()), markdown(table)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    args = parser.parse_args()
    kept = args.page.with_suffix(".json")
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    if args.files:
        rows |= merged(args.files)
        write_text(kept, json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    replace_section(args.page, "coverage", text(rows))


if __name__ == "__main__":
    main()
