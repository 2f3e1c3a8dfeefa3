"""Sums in a fixed order, for devices whose kernels have none. Tested on the CPU instead of a GPU."""

import warnings

import pytest
import torch

import dcnzoo.ops
from dcnzoo.ops import run as runner
from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.deform_conv import grad_input_in_order
from dcnzoo.ops.operator import OPERATORS
from tests import op_cases
from tests.op_cases import deform_conv, deform_roi_pool, roi_align

SAMPLES = [(rank, sample) for rank in (1, 2, 3) for sample in deform_conv.samples(rank)]


@pytest.mark.parametrize("rank, sample", SAMPLES, ids=[f"{r}-{s.name}" for r, s in SAMPLES])
def test_grad_input_in_order(rank, sample):
    output, expected, *_ = op_cases.results(deform_conv.reference, sample)
    geometry = deform_conv.geometry(sample, stride=1, padding=0, dilation=1)
    groups = sample.kwargs.get("groups", 1)
    options = (*geometry, groups, None, [True] * 5)
    arguments = arguments_of("_deform_conv_backward")(op_cases.ramp(output), *sample.tensors[:4], *options)
    result = grad_input_in_order(arguments)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_only_this_gradient_is_left_to_it(monkeypatch):
    sample = deform_conv.make("part", padding=1)
    _, (_, arguments), _ = deform_conv.OPERATORS[1].overload_calls(sample)
    asked = []

    def run(operator, device, keyset, call):
        asked.append(call.output_mask)
        return torch.ops.dcnzoo._deform_conv_backward(*call)

    monkeypatch.setattr(runner, "run", run)
    backward = runner.kernel_of(OPERATORS["_deform_conv_backward"], "CPU")
    expected = backward(None, *arguments)
    monkeypatch.setattr(runner, "is_deterministic", lambda tensor: True)
    results = backward(None, *arguments)
    assert asked == [[True] * 5, [False, True, True, True, True]]
    torch.testing.assert_close(results, expected)


@pytest.fixture
def order(monkeypatch):
    """Return a function that switches ordered sums on or off; backwards choose at every call, as on a GPU."""
    with torch.library._scoped_library("dcnzoo", "IMPL") as library, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kernels are replaced
        for operator in OPERATORS.values():
            if operator.in_order is not None:
                kernel = runner.kernel_of(operator, "CPU")
                library.impl(operator.name, kernel, "CPU", with_keyset=True)
        yield lambda on: monkeypatch.setattr(runner, "is_deterministic", lambda tensor: on)


def assert_same_in_order(op, sample, order, **tolerance) -> torch.Tensor:
    """Compare first and second derivatives in order with the kernels'. Return the first tensor's gradient."""
    results = []
    for ordered in (False, True):
        order(ordered)
        leaves = sample.leaves()
        first = torch.autograd.grad(op.call(leaves).square().sum(), leaves.given, create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves.given)])
    torch.testing.assert_close(*results, **tolerance)
    return results[0][0]


@pytest.mark.parametrize("op", op_cases.operators(), ids=lambda op: op.name)
def test_both_derivatives_are_the_same_in_order(op, order):
    assert_same_in_order(op, op.forms()[0], order)


POOLING = [
    (op, sample.kwargs)
    for op in (roi_align, deform_roi_pool)
    for sample in op.samples()
    if "samples" in sample.name
]


@pytest.mark.parametrize("op, settings", POOLING, ids=str)
def test_pooling(op, settings, order):
    """Pooling sums in order, also for RoIs across every border and for invalid ones."""
    nan, inf = float("nan"), float("inf")
    odd = [[0, nan, 0, 8, 8], [1, 0, 0, inf, 8], [1, 6, 6, 2, 2], [0, 90, 90, 99, 99], [1, -99, -9, 99, 30]]
    sample = op.make("pooling", rois=9, channels=2, **settings)
    sample.tensors[1][4:] = torch.tensor(odd)
    gradient = assert_same_in_order(op, sample, order, rtol=1e-9, atol=1e-9)
    assert gradient.count_nonzero() > 30


def test_pooling_in_half_precision_and_of_nothing(order):
    maps, rois = roi_align.make("half", rois=5).to(torch.bfloat16).tensors
    for images, count in ((2, 5), (2, 0), (0, 0)):
        results = []
        for ordered in (False, True):
            order(ordered)
            leaf = maps[:images].clone().requires_grad_()
            dcnzoo.ops.roi_align(leaf, rois[:count], (3, 2), 0.5).sum().backward()
            results.append(leaf.grad)
        torch.testing.assert_close(*results, rtol=2**-7, atol=2**-7)
