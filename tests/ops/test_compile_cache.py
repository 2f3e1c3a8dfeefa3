"""Code that torch.compile keeps on disk belongs to one state of dcnzoo."""

import shutil

import pytest

from tests.helpers.processes import ROOT, python_with_torch

STEP = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from dcnzoo import ops

assert ops.__file__.startswith(sys.argv[1])
torch.manual_seed(0)
input = torch.randn(1, 2, 5, 6, requires_grad=True)
weight, offset = torch.randn(3, 2, 3, 2), torch.zeros(1, 12, 3, 5)
eager, compiled = (
    torch.autograd.grad(function(input, weight, offset).sum(), input)[0]
    for function in (ops.deform_conv2d, torch.compile(ops.deform_conv2d, fullgraph=True))
)
torch.testing.assert_close(compiled, eager)
print(eager.abs().sum().item())
"""


@pytest.mark.slow
def test_a_changed_derivative_reaches_compiled_code(tmp_path):
    """Two copies of the package share a cache; the derivative of the second is twice that of the first."""
    copies = [tmp_path / name for name in ("before", "after")]
    for copy in copies:
        shutil.copytree(ROOT / "dcnzoo", copy / "dcnzoo", ignore=shutil.ignore_patterns(".mim"))
    file = copies[1] / "dcnzoo/ops/_autograd.py"
    text, result = file.read_text(), "*backward(ctx, *grads), None"
    assert result in text
    doubled = "*(None if grad is None else 2 * grad for grad in backward(ctx, *grads)), None"
    file.write_text(text.replace(result, doubled))
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    sums = [float(python_with_torch(STEP, copy, **cache).stdout) for copy in copies]
    assert sums[1] == pytest.approx(2 * sums[0])
