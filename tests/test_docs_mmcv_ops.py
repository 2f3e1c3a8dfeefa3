"""docs/mmcv_ops.md says what there is. To write it anew: python -m tests.test_docs_mmcv_ops"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from dcnzoo.compat.mmcv import _ext

PAGE = Path(__file__).resolve().parents[1] / "docs/mmcv_ops.md"
TEXT = """\
# mmcv.ops without a compiled mmcv

Where mmcv has no compiled module (mmcv-lite), `mmcv.ops` runs on dcnzoo's, CPU and GPU. **Compiled**: on
dcnzoo's own kernels. **PyTorch**: vectorised, with mmcv's results; also on the CPU where mmcv has them for
GPUs alone. **–**: calling it raises `NotImplementedError`, which says what to use instead, as here, and where
to ask for it: in dcnzoo's issue tracker. `make peers` compares each function that is there with mmcv's own,
forward and backward, in 200 random cases or more, and prints in how many: with its compiled operators where
they run on the CPU, else with its CUDA kernels on threads of the host, or by hand. Not yet run on a GPU.

| functions of `mmcv._ext` | asked for by | |
|---|---|---|
"""


def asked_for():
    """Module of mmcv.ops and the names that it asks ``mmcv._ext`` for."""
    for path in sorted((Path(find_spec("mmcv").origin).parent / "ops").glob("*.py")):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            yield path.stem, re.findall(r"'(\w+)'", names)


def status(name):
    function = getattr(_ext, name)
    if hasattr(function, "instead"):
        return f"– {function.instead}"
    return "PyTorch" if ".plain." in function.__module__ else "compiled"


def page():
    rows = []
    for module, names in asked_for():
        for kind in sorted({status(name) for name in names}):
            told = ", ".join(f"`{name}`" for name in names if status(name) == kind)
            rows.append(f"| {told} | `mmcv.ops.{module}` | {kind} |")
    return TEXT + "\n".join(sorted(rows, key=lambda row: "| – " in row)) + "\n"


def test_page_says_what_there_is():
    assert PAGE.read_text() == page(), "python -m tests.test_docs_mmcv_ops"


def test_every_function_is_accounted_for():
    names = [name for _, names in asked_for() for name in names]
    assert len(names) > 90
    missing = [name for name in names if status(name).startswith("–")]
    assert 0 < len(missing) < len(names) / 2
    for name in missing:
        instead = re.escape(status(name).removeprefix("– "))
        message = rf"^mmcv\.ops: {name}: .* not provided by dcnzoo; use {instead}, or ask for it"
        with pytest.raises(NotImplementedError, match=message):
            getattr(_ext, name)()


if __name__ == "__main__":
    PAGE.write_text(page())
