"""Write the tables of docs/conformance.md from the junit files of pytest.

::

    pytest benchmarks/conformance --junitxml=work_dirs/conformance.xml
    python -m benchmarks.conformance.page docs/conformance.md work_dirs/conformance.xml [FURTHER.xml]

A later file replaces the results that it has in common with an earlier one. Fails if a test failed.
"""

from __future__ import annotations

import argparse
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import markdown, replace_section

RUNTIMES = ("onnx reference", "onnxruntime", "OpenVINO", "OpenVINO IR", "AOTInductor", "ExecuTorch", "ncnn")
TABLES = (("float32", "fixed"), ("float32", "dynamic"), ("float16", "fixed"))


def read(files: list[Path]) -> Iterator[tuple[list[str], str, str]]:
    """Yield operator, form, runtime, type and size; the result; the environment and the date."""
    for file in files:
        for suite in ElementTree.parse(file).iter("testsuite"):
            for case in suite.iter("testcase"):
                found = {each.get("name"): each.get("value") for each in case.iter("property")}
                if "result" in found:
                    date = suite.get("timestamp", "")[:10]
                    yield found["case"].split("|"), found["result"], f"{found['environment']}; {date}"


def text(files: list[Path]) -> str:
    rows, environments, notes = {}, {}, []
    for case, result, environment in read(files):
        rows[tuple(case)] = result
        environments.setdefault(environment, set()).add(case[2])
    parts = [
        f"- {', '.join(sorted(names, key=RUNTIMES.index))}: {environment}."
        for environment, names in sorted(environments.items())
    ]
    parts = ["\n".join(parts)]
    for kind, size in TABLES:
        table = {case[:3]: result for case, result in rows.items() if case[3:] == (kind, size)}
        columns = [name for name in RUNTIMES if any(case[2] == name for case in table)]
        lines = [["operator", "form", *columns]]
        for operator, form in sorted({case[:2] for case in table}):
            lines.append(
                [operator, f"`{form}`", *(cell(table, operator, form, name, notes) for name in columns)]
            )
        parts += [f"## {kind}, {size} size", markdown(lines)]
    parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    return "\n\n".join(parts)


def cell(table: dict, operator: str, form: str, runtime: str, notes: list[str]) -> str:
    """Return the largest error, and the number of the note with the runtime's message."""
    error, message = re.fullmatch(
        r"(\de[-+]\d+)?(?:; )?(.*)", table.get((operator, form, runtime), "–")
    ).groups()
    if not message or message == "–":
        return error or message
    if message not in notes:
        notes.append(message)
    return f"{error or ''} [{notes.index(message) + 1}]".strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    replace_section(args.page, "conformance", text(args.files))
    failed = sum(len(list(ElementTree.parse(file).iter("failure"))) for file in args.files)
    if failed:
        raise SystemExit(f"error: {failed} tests failed")


if __name__ == "__main__":
    main()
