"""Functions that ``mmcv.ops`` loads and dcnzoo does not have."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from dcnzoo.compat.mmcv import _ext


def test_every_function_of_mmcv_exists_or_names_a_replacement():
    missing = []
    for path in (Path(find_spec("mmcv").origin).parent / "ops").glob("*.py"):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            functions = {name: getattr(_ext, name) for name in re.findall(r"'(\w+)'", names)}
            missing += [(name, f) for name, f in functions.items() if hasattr(f, "instead")]
    assert missing
    for name, function in missing:
        expected = re.escape(function.instead)
        with pytest.raises(NotImplementedError, match=rf"^mmcv\.ops: {name}: .*{expected}"):
            function()
