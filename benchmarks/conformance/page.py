"""Write the tables of docs/benchmarks/conformance.md from the junit file of pytest. Fails if a test failed.

::

    pytest benchmarks/conformance --junitxml=work_dirs/conformance.xml
    python -m benchmarks.conformance.page work_dirs/conformance.xml
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

from benchmarks.conformance.runtimes import PACKAGES
from benchmarks.measure import ROOT, markdown, properties, replace_section

TABLES = (("float32", "fixed"), ("float32", "dynamic"), ("float16", "fixed"))


def text(suite: ElementTree.Element) -> str:
    rows, environments, notes = {}, {}, []
    for test in suite.iter("testcase"):
        values = properties(test)
        if "result" in values:
            case = tuple(values["case"].split("|"))  # operator, form, runtime, type, size
            rows[case] = values["result"]
            environments.setdefault(values["environment"], set()).add(case[2])
    date = suite.get("timestamp", "")[:10]
    columns = [name for name in PACKAGES if any(name in names for names in environments.values())]
    parts = [
        f"- {', '.join(sorted(names, key=columns.index))}: {environment}; {date}."
        for environment, names in sorted(environments.items())
    ]
    parts = ["\n".join(parts)]
    for kind, size in TABLES:
        table = {case[:3]: result for case, result in rows.items() if case[3:] == (kind, size)}
        runtimes = [name for name in columns if any(case[2] == name for case in table)]
        lines = [["operator", "form", *runtimes]]
        for operator, form in sorted({case[:2] for case in table}):
            cells = (cell(table.get((operator, form, name), "–"), notes) for name in runtimes)
            lines.append([operator, f"`{form}`", *cells])
        parts += [f"## {kind}, {size} size", markdown(lines)]
    parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    return "\n\n".join(parts)


def cell(result: str, notes: list[str]) -> str:
    """Return the largest error, and the number of the note with the runtime's message."""
    error, message = re.fullmatch(r"(\de[-+]\d+)?(?:; )?(.*)", result).groups()
    if not message or message == "–":
        return error or message
    if message not in notes:
        notes.append(message)
    return f"{error or ''} [{notes.index(message) + 1}]".strip()


def main() -> None:
    (suite,) = ElementTree.parse(sys.argv[1]).iter("testsuite")
    replace_section(ROOT / "docs/benchmarks/conformance.md", "conformance", text(suite))
    if failed := len(list(suite.iter("failure"))):
        raise SystemExit(f"error: {failed} tests failed")


if __name__ == "__main__":
    main()
