"""The private torch symbols that the operators use exist and work as expected. Only one module uses them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dcnzoo.ops
from dcnzoo.ops import _torch_private as private

SOURCES = [
    source
    for folder in ("ops", "layers")
    for source in (Path(dcnzoo.ops.__file__).parents[1] / folder).rglob("*.py")
    if source.name != "_torch_private.py"
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: "-".join(path.parts[-2:]))
def test_no_other_module_uses_private_symbols(source):
    used = re.findall(r"\btorch(?:\.\w+)*\._\w+", code := source.read_text())
    assert [name for name in used if not name.startswith("torch.ops.dcnzoo.")] == []
    assert re.findall(r"^from torch\S* import .*\b_\w+", code, re.MULTILINE) == []


def test_nothing_is_missing():
    assert private.missing is None


def test_absent_symbol_is_named():
    code = """
import torch
del torch._C._any_requires_grad
import dcnzoo.ops
assert not dcnzoo.ops.has_ops()
from dcnzoo.ops import deform_conv2d
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = child.stderr.splitlines()[-1]
    assert last.startswith("ImportError") and "torch._C._any_requires_grad" in last
    assert torch.__version__ in last
