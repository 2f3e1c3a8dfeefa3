"""Random calls: each equals the reference or raises a documented error. `make fuzz` tries many more."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from .fuzzing import DTYPES, OPERATORS, SAMPLES, broken, laid_out, on_grid, with_extremes
from .op_cases import Sample

EXAMPLES = int(os.environ.get("DCNZOO_FUZZ_EXAMPLES", "25"))  # of an operator, for each of the tests
# of the largest magnitude of the result
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
DIFFERENTIABLE = [name for name in SAMPLES if name not in ("nms", "roi_align")]
DOCUMENTED = (RuntimeError, TypeError, ValueError)

every_operator = pytest.mark.parametrize("name", SAMPLES)


def examples(test):
    """The same in every run of the suite; new ones in every `make fuzz`."""
    fixed = "DCNZOO_FUZZ_EXAMPLES" not in os.environ
    health = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors)
    return settings(
        max_examples=EXAMPLES, deadline=None, derandomize=fixed, database=None, suppress_health_check=health
    )(test)


def exact(sample: Sample) -> Sample:
    """What the reference is asked: the same numbers, in float64, in memory of their own."""
    return sample.map(lambda t: t.double().clone(memory_format=torch.contiguous_format))


def is_plain_convolution(name: str, sample: Sample) -> bool:
    return "conv" in name and sample.tensors[2] is None and sample.tensors[3] is None


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    # What comes of NaN or infinity may stay out of more (a mask's, where nothing is read), never get further.
    finite = expected.isfinite()
    actual, expected = actual[finite], expected[finite]
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * max(1.0, scale))


@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_is_the_references(name, dtype):
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(SAMPLES[name])
        # RoIAlign leaps at a map's border, where rounding decides; the others are continuous
        if name not in ("roi_align", "deform_roi_pool") and data.draw(st.booleans()):
            sample = on_grid(sample)
        sample = data.draw(laid_out(sample.to(dtype)))
        assert_equal(op.call(sample), op.reference(exact(sample)), 0 if name == "nms" else TOLERANCE[dtype])

    check()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_the_references(name):
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(laid_out(data.draw(SAMPLES[name])))
        differentiable = [i for i, t in enumerate(sample.tensors) if t is not None]
        if name == "deform_roi_pool":
            differentiable.remove(1)  # rois
        results = []
        for function, given_sample in ((op.call, sample), (op.reference, exact(sample))):
            leaves = [None if t is None else t.detach() for t in given_sample.tensors]
            for i in differentiable:
                leaves[i].requires_grad_()
            wanted = [leaves[i] for i in differentiable]
            # of no RoIs the reference's result depends on nothing
            output = function(Sample("", tuple(leaves), sample.kwargs)) + sum(t.sum() * 0 for t in wanted)
            grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
            results.append(torch.autograd.grad(output, wanted, grad))
        for actual, expected in zip(*results, strict=True):
            assert_equal(actual, expected, TOLERANCE[torch.float64])

    check()


@every_operator
def test_extreme_values_do_no_harm(name):
    """NaN, infinity and numbers beyond every integer, in any tensor."""
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(with_extremes(data.draw(SAMPLES[name])))
        try:
            actual = op.call(sample)
        except DOCUMENTED as error:
            assert str(error)
            return
        if name in ("nms", "roi_align", "deform_roi_pool"):
            return  # loops are no oracle for boxes without end: what is shown is that it returns
        if is_plain_convolution(name, sample):
            return  # which does not read the neighbours of a whole-numbered point, as the reference does
        assert_equal(actual, op.reference(exact(sample)), TOLERANCE[torch.float64])

    check()


@every_operator
def test_broken_call_is_refused(name):
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(broken(data.draw(SAMPLES[name])))
        if is_plain_convolution(name, sample):
            return  # torch's own, and so are its errors
        try:
            actual = op.call(sample)
        except DOCUMENTED as error:
            assert str(error)
            return
        assert_equal(actual, op.reference(exact(sample)), TOLERANCE[torch.float32])

    check()
