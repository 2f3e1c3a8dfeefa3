"""Write a section of docs/coverage.md from the junit files of pytest.

::

    pytest benchmarks/coverage/test_mmdet.py --junitxml=work_dirs/coverage.xml
    python -m benchmarks.coverage.table mmdet work_dirs/coverage.xml [FURTHER.xml]

FURTHER.xml: the results of an environment with further packages, for families that are not ok without them.

Results are kept in SECTION.json, if it exists, so that a part of the families can be measured again.
"""

import json
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from itertools import groupby
from pathlib import Path

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import ROOT, parser_of, replace_section
from dcnzoo.utils.files import write_text

Rows = dict[str, dict[str, str]]  # family → config, result, revision, code, versions, date
REFUSED = "ValueError: detector: expected one that can be exported: "  # by openmmlab/export/predict.py
LISTED = 12  # families of one result; more are only counted
ROOMS = {  # the folders of the code that a section tests
    "mmdet": ("compat", "layers", "openmmlab"),
    "deformable": ("compat", "layers", "openmmlab"),
    "export": ("export", "openmmlab/export", "openmmlab/patches"),
}


def git(*arguments: str) -> str:
    return subprocess.check_output(("git", "-C", str(ROOT), *arguments), text=True)


def code(section: str) -> str:
    """Return git's hashes of the folders that a section tests."""
    trees = git("rev-parse", *(f"HEAD:dcnzoo/{room}" for room in ROOMS[section])).split()
    return " ".join(tree[:7] for tree in trees)


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
    """Return the results of the first file; later files replace those that are not ok."""
    first, *further = map(read, files)
    for rows in further:
        for family, row in rows.items():
            before = first.get(family, {}).get("result", "")
            if is_ok(before):
                continue
            if is_ok(row["result"]):
                row["result"] += f" with further packages; without: {before}"
            first[family] = row
    return first


def text(rows: Rows, section: str) -> str:
    results = {family: row["result"].replace(REFUSED, "refused: ") for family, row in rows.items()}
    families: dict[tuple[str, str], list[str]] = {}
    for family, row in sorted(measured(rows).items()):
        families.setdefault((row["date"], row["versions"].partition(",")[0]), []).append(family)
    lines = [f"**{sum(map(is_ok, results.values()))} of {len(results)} are ok.**{age(rows, section)}"]
    for (date, torch), names in sorted(families.items(), reverse=True):
        lines.append(f"{len(names)} were measured on {date} with {torch}.")
    return "\n\n".join([*lines, by_result(results)])


def measured(rows: Rows) -> Rows:
    return {family: row for family, row in rows.items() if not row["result"].startswith("out of scope")}


def age(rows: Rows, section: str) -> str:
    """Return a sentence about rows that are older than the code that they test, or ''."""
    old = sum(row.get("code") != code(section) for row in measured(rows).values())
    return f" {old} of these results are older than the code that they are about." if old else ""


def by_result(results: dict[str, str]) -> str:
    """List the families of each result; many, and those of *ok* and of *ok: …*, are only counted."""
    plain = {family for family, result in results.items() if result.split(":")[0] == "ok"}

    def key(family: str) -> tuple[bool, str, str]:
        return not is_ok(results[family]), results[family], family

    lines = []
    for result, families in groupby(sorted(results.keys() - plain, key=key), key=results.__getitem__):
        names = list(families)
        listed = ", ".join(names) if len(names) <= LISTED else f"{len(names)} configs"
        lines.append(f"- **{result}**: {listed}")
    return "\n".join([*lines, f"- **ok**: all others ({len(plain)})"])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("section", choices=list(ROOMS))
    parser.add_argument("files", type=Path, nargs="*")
    args = parser.parse_args()
    kept = ROOT / f"benchmarks/coverage/{args.section}.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    if args.files:
        rows |= merged(args.files)
        lines = (
            f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in sorted(rows.items())
        )
        write_text(kept, "{\n" + ",\n".join(lines) + "\n}\n")
    replace_section(ROOT / "docs/coverage.md", args.section, text(rows, args.section))


if __name__ == "__main__":
    main()
