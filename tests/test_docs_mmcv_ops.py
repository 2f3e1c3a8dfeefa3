"""The table of docs/mmcv_ops.md. Write it with: python -m tests.test_docs_mmcv_ops"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from dcnzoo.compat.mmcv import _ext

PAGE = Path(__file__).resolve().parents[1] / "docs/mmcv_ops.md"
HEADER = "| functions of `mmcv._ext` | module | |\n|---|---|---|\n"


def asked_for():
    for path in sorted((Path(find_spec("mmcv").origin).parent / "ops").glob("*.py")):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            yield path.stem, re.findall(r"'(\w+)'", names)


def status(name):
    function = getattr(_ext, name)
    if hasattr(function, "instead"):
        return f"– {function.instead}"
    if ".plain." not in function.__module__:
        return "compiled"
    return "PyTorch"


def table():
    rows = []
    for module, names in asked_for():
        for kind in sorted({status(name) for name in names}):
            told = ", ".join(f"`{name}`" for name in names if status(name) == kind)
            rows.append(f"| {told} | `mmcv.ops.{module}` | {kind} |")
    return "\n".join(sorted(rows, key=lambda row: "| – " in row)) + "\n"


def test_every_function_is_in_the_table_or_says_what_to_use():
    assert PAGE.read_text().partition(HEADER)[2] == table(), "python -m tests.test_docs_mmcv_ops"
    missing = [name for _, names in asked_for() for name in names if status(name).startswith("–")]
    assert missing
    for name in missing:
        instead = re.escape(status(name).removeprefix("– "))
        with pytest.raises(NotImplementedError, match=rf"^mmcv\.ops: {name}: .*{instead}"):
            getattr(_ext, name)()


if __name__ == "__main__":
    PAGE.write_text("".join(PAGE.read_text().partition(HEADER)[:2]) + table())
