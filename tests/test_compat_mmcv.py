"""``mmcv.ops`` on dcnzoo's operators: every name exists. For the operators, see test_compat_mmcv_*.py."""

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import dcnzoo.compat.mmcv
import dcnzoo.models
from dcnzoo.compat import extensions
from dcnzoo.compat.mmcv import _ext

mmcv_ops = importlib.import_module("mmcv.ops")


def test_every_name_of_mmcv_ops_imports():
    missing = [name for name in mmcv_ops.__all__ if not hasattr(mmcv_ops, name)]
    assert not missing
    assert len(mmcv_ops.__all__) > 90


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


def test_finder_is_last_and_knows_one_name():
    dcnzoo.compat.mmcv.install()  # a second call has no effect
    (finder,) = [f for f in sys.meta_path if isinstance(f, extensions.Finder)]
    assert finder.find_spec("mmcv.ops") is None
    assert finder.find_spec("mmcv._ext").origin == str(dcnzoo.compat.mmcv.STAND_IN)
    assert "dcnzoo" in _ext.get_compiler_version() and "dcnzoo" in _ext.get_compiling_cuda_version()
    assert not hasattr(_ext, "__wrapped__")  # attributes that inspection looks up are not operators
