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
ROOMS = {  # the code that the rows of a section are about
    "mmdet": ("compat", "layers", "openmmlab"),
    "deformable": ("compat", "layers", "openmmlab"),
    "export": ("export", "openmmlab/export", "openmmlab/patches"),
    "openmmlab": ("compat", "layers", "openmmlab"),
    "networks": ("compat", "layers"),
}


def git(*arguments: str) -> str:
    return subprocess.check_output(("git", "-C", str(ROOT), *arguments), text=True)


def code(section: str) -> str:
    """Return the hashes of the rooms that a section is about."""
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
    """Return the results of the first file; those of later files replace what is not ok."""
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
    results = {family: row["result"] for family, row in rows.items()}
    families: dict[tuple[str, str], list[str]] = {}
    for family, row in sorted(measured(rows).items()):
        families.setdefault((row["date"], row["versions"].partition(",")[0]), []).append(family)
    lines = [f"**{sum(map(is_ok, results.values()))} of {len(results)} are ok.**{age(rows, section)}"]
    for (date, torch), names in sorted(families.items(), reverse=True):
        lines.append(f"{len(names)} were measured on {date} with {torch}.")
    lines.append("`benchmarks/coverage/` has the revision, the date and all versions of each.")
    return "\n\n".join([*lines, by_result(results)])


def measured(rows: Rows) -> Rows:
    return {family: row for family, row in rows.items() if not row["result"].startswith("out of scope")}


def age(rows: Rows, section: str) -> str:
    """Say how many rows are not about the present code."""
    old = sum(row.get("code") != code(section) for row in measured(rows).values())
    return f" {old} of these results are older than the code that they are about." if old else ""


def exceptions(rows: Rows, section: str) -> str:
    """List the operations of ``test_networks.py``, and the networks with another result than *ok*."""
    results = {name: json.loads(row["operations"]) for name, row in rows.items()}
    cells = [
        (f"{text.partition(':')[0]}, {operation.replace('_', ' ')}", name)
        for name, row in results.items()
        for operation, text in row.items()
        if text != "ok"
    ]
    count = sum(map(len, results.values()))
    bad = sum(result.startswith(("wrong", "crash")) for result, _ in cells)
    date, installed = max((row["date"], row["versions"].partition(",")[0]) for row in rows.values())
    operations = (operation.replace("_", " ") for operation in next(iter(results.values())))
    networks = (f"{name} ({row['config']})" for name, row in rows.items())
    groups = groupby(sorted(cells), key=lambda cell: cell[0])
    listed = (f"- **{result}**: {', '.join(name for _, name in names)}" for result, names in groups)
    return "\n\n".join(
        [
            f"**{count - bad} of {count} results are neither *wrong* nor a *crash*.**{age(rows, section)}",
            f"Networks: {', '.join(networks)}.",
            f"Operations: {', '.join(operations)}.",
            f"Measured on {date} with {installed}; `benchmarks/coverage/` has all versions.",
            "\n".join([*listed, "- **ok**: all others"]),
        ]
    )


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
    parser.add_argument("section", help="mmdet, deformable, export, openmmlab or networks")
    parser.add_argument("files", type=Path, nargs="*")
    args = parser.parse_args()
    kept = ROOT / f"benchmarks/coverage/{args.section}.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    if args.files:
        rows |= merged(args.files)
        write_text(kept, json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    write = exceptions if args.section == "networks" else text
    replace_section(ROOT / "docs/coverage.md", args.section, write(rows, args.section))


if __name__ == "__main__":
    main()
