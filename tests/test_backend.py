"""DCNZOO_BACKEND. Fused kernels: tests/fused. Without compiled kernels: test_plain.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from dcnzoo.ops import _backend


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


CALL = """
import torch
from dcnzoo.ops import deform_conv2d
x, w, offset = torch.randn(1, 3, 5, 6, requires_grad=True), torch.randn(4, 3, 3, 2), torch.zeros(1, 12, 5, 7)
out = deform_conv2d(x, w, offset, padding=1)
out.sum().backward()
assert torch.allclose(out, torch.nn.functional.conv2d(x, w, padding=1), atol=1e-5)
print(type(out.grad_fn).__name__)
"""


def test_backends_that_are_not_there():
    no_triton = f"import importlib.util as u; u.find_spec = lambda *_: None\n{CALL}"
    for code, backend, expected in (
        ("import dcnzoo.ops", "cuda", "DCNZOO_BACKEND: .*'cuda'"),
        (no_triton, "fused", "DCNZOO_BACKEND=fused: .*pip install triton"),
    ):
        last = run(code, DCNZOO_BACKEND=backend).stderr.splitlines()[-1]
        assert re.match(f"RuntimeError: {expected}", last), last
    with pytest.raises(RuntimeError, match="'slow'"):
        _backend.using("slow").__enter__()
    with _backend.using("compiled"):
        assert _backend.backend == "compiled"
    assert _backend.backend == "auto"


@pytest.mark.parametrize("backend", ["auto", "compiled", "reference"])
def test_backends_agree(backend):
    child = run(CALL, DCNZOO_BACKEND=backend)
    assert child.returncode == 0, child.stderr
    # torch's autograd differentiates the reference
    assert ("dcnzoo_deform_conv" in child.stdout) == (backend != "reference")


def test_reference_in_inference_mode_and_its_checks():
    code = """
import torch
from dcnzoo.ops import deform_conv2d, reference
reference.deform_conv = lambda input, *arguments: input.new_full((1, 4, 5, 7), 7)
arguments = torch.randn(1, 3, 5, 6), torch.randn(4, 3, 3, 2), torch.zeros(1, 12, 5, 7)
with torch.inference_mode():
    assert (deform_conv2d(*arguments, padding=1) == 7).all()
deform_conv2d(*arguments, padding=0)
"""
    child = run(code, DCNZOO_BACKEND="reference")
    assert child.stderr.splitlines()[-1].startswith("RuntimeError: deform_conv2d: offset: expected spatial")


def test_every_reference_is_used_and_checks_arguments():
    """Forward and backward run no kernel, and invalid calls are rejected as usual."""
    code = """
import re
import torch
from dcnzoo.ops import reference
from tests import op_cases
from tests.test_roi_pooling import example, deform_roi_pool
used = set()
for name in ("deform_conv", "deform_conv_transpose", "deform_roi_pool", "dcnv3", "ms_deform_attn"):
    def recorded(*arguments, name=name, function=getattr(reference, name)):
        used.add(name)
        return function(*arguments)
    setattr(reference, name, recorded)
maps, rois, offset = example()
arguments = {"input": maps, "rois": rois, "offset": offset.requires_grad_(), "output_size": (3, 2)}
output = deform_roi_pool(**arguments)
assert "dcnzoo" not in type(output.grad_fn).__name__ and used == {"deform_roi_pool"}
output.sum().backward()
used.clear()
with torch.inference_mode():
    deform_roi_pool(**arguments)
assert used == {"deform_roi_pool"}
for operator in op_cases.operators():
    for sample, message in operator.invalid():
        if all(t is None or t.is_floating_point() for t in sample.tensors):
            try:
                operator.call(sample)
            except RuntimeError as error:
                assert re.search(message, str(error)), (message, error)
            else:
                raise AssertionError(f"{operator.name}: {sample.name}")
"""
    child = run(code, DCNZOO_BACKEND="reference")
    assert child.returncode == 0, child.stderr


def test_tf32_only_where_torch_allows_it():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert _backend._tf32() == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
