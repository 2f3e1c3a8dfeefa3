"""Write docs/coverage.md from the junit files of pytest.

::

    pytest benchmarks/coverage/test_mmdet.py --junitxml=work_dirs/coverage.xml
    python -m benchmarks.coverage.table mmdet work_dirs/coverage.xml [FURTHER.xml]

FURTHER.xml: the results of an environment with further packages, for families that are not ok without them.

Results are kept in SECTION.json, if it exists, so that a part of the families can be measured again.
"""

import json
import re
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import ROOT, markdown, parser_of, properties, replace_section
from dcnzoo.utils.files import write_text

Rows = dict[str, dict[str, str]]  # family → config, result, revision, versions, date
SECTIONS = ("mmdet", "deformable", "export")
FURTHER = " with further packages; without: "
REFUSED = "ValueError: detector: expected one that can be exported: "  # by openmmlab/export/predict.py
PACKAGE = r"(?:No module named '|to install |by: pip install |^ImportError: Please install )([\w-]+)"


def read(file: Path) -> Rows:
    rows, installed = {}, ""
    for node in ElementTree.parse(file).iter():
        values = properties(node)
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
                row["result"] += FURTHER + before
            first[family] = row
    return first


def short(result: str) -> str:
    """Return a result for a cell: yes, *fixed size*, or no with the reason."""
    if is_ok(result):
        return result.partition(FURTHER)[0].removeprefix("ok").removeprefix(", ") or "yes"
    if re.search(PACKAGE, result):
        return "no"
    reason = re.sub(rf"^(out of scope: |{REFUSED}(\w+: )?)", "", result)
    return f"no: {reason}"


def families(trained: Rows, exported: Rows) -> str:
    """List the families of equal results in one row: first those that are exported, and the longest rows."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for family, row in trained.items():
        export = exported[family]["result"]
        package = re.search(PACKAGE, row["result"])
        key = (short(row["result"]), short(export), package[1] if package else "")
        groups.setdefault(key, []).append(family)
    lines = [("families", "build, train", "ONNX, OpenVINO", "need")]

    def order(group: tuple[tuple[str, str, str], list[str]]) -> tuple[bool, int, str]:
        (_, export, package), names = group
        return export.startswith("no"), -len(names), f"{export} {package}"

    for key, names in sorted(groups.items(), key=order):
        lines.append((", ".join(sorted(names)), *key))
    return markdown(lines)


def counts(rows: Rows) -> str:
    """Return how many results are ok, and the revisions at which they were measured, oldest first."""
    dates = {row["revision"]: row["date"] for row in rows.values() if "revision" in row}
    revisions = ", ".join(sorted(dates, key=dates.__getitem__))
    number = sum(is_ok(row["result"]) for row in rows.values())
    return f"{number} of {len(rows)}, measured at {revisions}"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("files", type=Path, nargs="*")
    args = parser.parse_args()
    paths = {section: ROOT / f"benchmarks/coverage/{section}.json" for section in SECTIONS}
    rows = {section: json.loads(path.read_text()) for section, path in paths.items()}
    if args.files:
        rows[args.section] |= merged(args.files)
        section = sorted(rows[args.section].items())
        texts = (f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in section)
        write_text(paths[args.section], "{\n" + ",\n".join(texts) + "\n}\n")
    page = ROOT / "docs/coverage.md"
    trained, exported, deformable = (rows[section] for section in ("mmdet", "export", "deformable"))
    lines = [
        f"- They build, predict and train: **{counts(trained)}**",
        f"- The exported file has PyTorch's detections: **{counts(exported)}**",
    ]
    replace_section(page, "families", "\n".join([*lines, "", families(trained, exported)]))
    replace_section(page, "deformable", f"**{counts(deformable)}.**")


if __name__ == "__main__":
    main()
