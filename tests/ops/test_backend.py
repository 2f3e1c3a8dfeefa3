"""DCNZOO_BACKEND. Fused kernels: tests/fused. Without compiled kernels: test_plain.py."""

import re

import pytest
import torch

from dcnzoo.ops import choose, run
from dcnzoo.ops.fused import available
from tests.helpers.processes import python_with_torch


def test_backends_that_are_not_installed_or_unknown():
    """A backend is a preference: without Triton, the compiled kernels run."""
    code = """
import importlib.util, torch
importlib.util.find_spec = lambda *_: None
from dcnzoo.ops import deform_conv2d
for _ in range(2):
    deform_conv2d(torch.randn(1, 3, 5, 6), torch.randn(4, 3, 3, 2), torch.zeros(1, 12, 5, 7), padding=1)
"""
    errors = python_with_torch(code, DCNZOO_BACKEND="fused", TRITON_INTERPRET="1").stderr
    assert len(re.findall("Warning: DCNZOO_BACKEND=fused: .*pip install triton", errors)) == 1
    with pytest.raises(RuntimeError, match="'slow'"):
        run.set_backend("slow")
    assert choose.valid_backend("reference") == "plain"  # its name until 0.2.0


def test_an_empty_variable_is_no_preference():
    code = "from dcnzoo.ops import choose; assert choose.backend == 'auto'"
    python_with_torch(code, DCNZOO_BACKEND="")


def test_a_backend_that_is_set_later_runs_every_call():
    code = """
import torch
from dcnzoo.ops import choose, nms, run
ran, run.run_in_torch = [], lambda operator, compute, call: torch.tensor([7])
boxes, scores = torch.tensor([[0.0, 0, 4, 4], [1, 1, 9, 9]]), torch.tensor([0.5, 0.9])
for backend in ("auto", "plain", "compiled"):
    run.set_backend(backend)
    ran.append(nms(boxes, scores, 0.7).tolist())
assert ran == [[1, 0], [7], [1, 0]], ran
"""
    python_with_torch(code)


def test_plain_is_one_operator_to_others():
    """A trace has the operator; RoIs get no gradient, and other tensors always do, also without RoIs."""
    code = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from tests import op_cases
for operator in op_cases.operators():
    sample = operator.forms()[0].leaves()
    trace = make_fx(lambda given: operator.call(sample.with_given(given)))(sample.given)
    assert any("dcnzoo" in str(node.target) for node in trace.graph.nodes), operator.name
    if "roi" in operator.name:
        for number in (1, 0):
            maps, *of_rois = (tensor.detach() for tensor in sample.tensors)
            tensors = [tensor.requires_grad_() for tensor in (maps, *(t[:number] for t in of_rois))]
            output = operator.call(op_cases.Sample("", tuple(tensors), sample.kwargs))
            gradients = torch.autograd.grad(output.sum(), tensors, allow_unused=True)
            assert [g is None for g in gradients] == [i == 1 for i in range(len(tensors))], operator.name
"""
    python_with_torch(code, DCNZOO_BACKEND="plain")


def test_tf32_only_where_torch_allows_it():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert available.tf32() == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
