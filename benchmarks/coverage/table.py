"""Write a section of docs/coverage.md from the junit files of pytest.

::

    pytest benchmarks/coverage/test_mmdet.py --junitxml=work_dirs/coverage.xml
    python -m benchmarks.coverage.table mmdet work_dirs/coverage.xml [FURTHER.xml]

FURTHER.xml: the results of an environment with further packages, for families that are not ok without them.

Results are kept in SECTION.json, with the version (a hash) of the code that they depend on. The page lists
which results are of the present code.
"""

import functools
import json
import time
import xml.etree.ElementTree as ElementTree
from itertools import groupby
from pathlib import Path

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import ROOT, code_version, parser_of, replace_section
from dcnzoo.utils.files import write_text

Rows = dict[str, dict[str, str]]  # family → config, result, code, depends, versions, date


def read(file: Path) -> Rows:
    rows, installed = {}, ""
    for node in ElementTree.parse(file).iter():
        values = {each.get("name"): each.get("value") for each in node.findall("properties/property")}
        installed = values.get("versions", installed)
        if "result" in values:
            date = time.strftime("%Y-%m-%d")
            rows[values.pop("family")] = {**values, "versions": installed, "date": date}
    return rows


def merged(files: list[Path]) -> Rows:
    """Return the results of the first file, and of the others for families that are not ok there."""
    first, *further = map(read, files)
    for rows in further:
        for family, row in rows.items():
            before = first.get(family, {}).get("result", "")
            if is_ok(row["result"]) and not is_ok(before):
                result = f"{row['result']} with further packages; without: {before}"
                first[family] = {**row, "result": result}
    return first


@functools.cache
def _current(depends: str) -> str:
    try:
        return code_version(depends.split())
    except FileNotFoundError:  # a file that the result depends on is gone
        return ""


def text(rows: Rows) -> str:
    results = {family: row["result"] for family, row in rows.items()}
    tried = {family: row for family, row in rows.items() if not row["result"].startswith("out of scope")}
    current = [family for family, row in tried.items() if row["code"] == _current(row["depends"])]
    dates: dict[str, str] = {}
    for row in tried.values():
        dates[row["versions"]] = max(dates.get(row["versions"], ""), row["date"])
    lines = [f"**{sum(map(is_ok, results.values()))} of {len(results)} are ok.**"]
    if len(current) < len(tried):
        others = max(row["date"] for family, row in tried.items() if family not in current)
        names = ", ".join(sorted(current)) or "none"
        lines.append(f"Measured with this version of the code: {names}.")
        lines.append(f"All others were measured with an earlier version, until {others}.")
    lines += [f"Tested until {date} with {installed}." for installed, date in dates.items()]
    return "\n\n".join([*lines, by_result(results)])


def by_result(results: dict[str, str]) -> str:
    """List the families of each result, except of *ok*, to which a config may add its layers (*ok: …*)."""
    plain = {family for family, result in results.items() if result.split(":")[0] == "ok"}

    def key(family: str) -> tuple[bool, str, str]:
        return not is_ok(results[family]), results[family], family

    groups = groupby(sorted(results.keys() - plain, key=key), key=results.__getitem__)
    lines = (f"- **{result}**: {', '.join(families)}" for result, families in groups)
    return "\n".join([*lines, f"- **ok**: all others ({len(plain)})"])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("section", help="mmdet, deformable, export or openmmlab")
    parser.add_argument("files", type=Path, nargs="*")
    args = parser.parse_args()
    kept = ROOT / f"benchmarks/coverage/{args.section}.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    if args.files:
        rows |= merged(args.files)
        write_text(kept, json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    replace_section(ROOT / "docs/coverage.md", args.section, text(rows))


if __name__ == "__main__":
    main()
