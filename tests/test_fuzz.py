"""Random calls equal the reference or raise a documented error. `nox -s fuzz` runs many more."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from .fuzzing import DTYPES, EXTREME, OPERATORS, SAMPLES, broken, laid_out, on_grid, with_extremes
from .op_cases import Operator, Sample, is_plain_convolution

EXAMPLES = int(os.environ.get("DCNZOO_FUZZ_EXAMPLES", "25"))  # per operator and test
# relative to the largest sum of the absolute values of a result's terms
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DIFFERENTIABLE = [name for name, op in OPERATORS.items() if op.differentiable]
POOLS = [name for name in DIFFERENTIABLE if not OPERATORS[name].continuous]
DOCUMENTED = (RuntimeError, TypeError, ValueError)

every_operator = pytest.mark.parametrize("name", SAMPLES)
every_differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)


def examples(test):
    """The same examples in every run of the suite, and new ones in every `nox -s fuzz`."""
    fixed = "DCNZOO_FUZZ_EXAMPLES" not in os.environ
    health = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors)
    return settings(
        max_examples=EXAMPLES, deadline=None, derandomize=fixed, database=None, suppress_health_check=health
    )(test)


def exact(sample: Sample) -> Sample:
    """The sample for the reference: the same numbers in float64, in separate memory."""
    return sample.map(lambda t: t.double().clone(memory_format=torch.contiguous_format))


def is_refused(name: str, sample: Sample) -> bool:
    """Whether a size of zero is an error. It must not be one if torch's convolution returns a result."""
    if not sample.name.startswith("zero"):
        return False
    if is_plain_convolution(sample):
        return True  # torch's own convolution
    try:
        OPERATORS[name].call(sample)
    except DOCUMENTED as error:
        assert str(error)
        assert not torch_has_a_result(name, sample)
        return True
    return False


def torch_has_a_result(name: str, sample: Sample) -> bool:
    """Whether torch's convolution of the same input and weight returns elements."""
    if "conv" not in name:
        return False
    input, weight, _, _, bias = sample.tensors
    settings = {key: value for key, value in sample.kwargs.items() if key != "im2col_step"}
    try:
        return getattr(F, name.removeprefix("deform_"))(input, weight, bias, **settings).numel() > 0
    except (*DOCUMENTED, IndexError):
        return False


def gradients(function: Callable, sample: Sample, grad_output: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of the differentiable tensors."""
    wanted = [t.detach().requires_grad_() for t in sample.given]
    # without RoIs, the reference's result does not depend on its arguments
    output = function(sample.with_given(wanted)) + sum(t.flatten()[:0].sum() for t in wanted)
    if grad_output is None:
        grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float, terms: Tensor | None = None) -> None:
    """The same elements are finite, and they are equal.

    Args:
        terms: the sum of the absolute values of each result's terms, to which rounding errors are relative.
    """
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    terms = expected.abs() if terms is None else torch.maximum(terms.detach().abs(), expected.abs())
    actual, expected, terms = actual[finite], expected[finite], terms[finite]
    # an extreme number reduces the accuracy only of the sums that include it
    usual = terms[terms < 1e9]
    scale = torch.maximum(terms, usual.max() if usual.numel() else terms.new_zeros(()))
    error = (actual - expected).abs()
    assert (error <= tolerance * scale).all(), f"off by {error.max():.3g}: {actual} instead of {expected}"


def assert_same(op: Operator, sample: Sample, actual: Tensor, tolerance: float) -> None:
    expected = op.reference(exact(sample))
    if op.absolute is None:  # returns indices
        assert torch.equal(actual, expected)
    else:
        assert_equal(actual, expected, tolerance, op.reference(op.absolute(exact(sample))))


@every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_is_the_references(name, dtype):
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(SAMPLES[name])
        # RoIAlign is discontinuous at a map's border, where rounding decides
        if name not in POOLS and data.draw(st.booleans()):
            sample = on_grid(sample)
        sample = data.draw(laid_out(sample.to(dtype)))
        if is_refused(name, sample):
            return
        assert_same(op, sample, op.call(sample), TOLERANCE[dtype])

    check()


@every_differentiable
def test_gradients_are_the_references(name):
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(laid_out(data.draw(SAMPLES[name])))
        if is_refused(name, sample):
            return
        actual = gradients(op.call, sample)
        expected = gradients(op.reference, exact(sample))
        ones = torch.ones_like(expected[0])
        terms = gradients(op.reference, op.absolute(exact(sample)), ones)
        for mine, true, sums in zip(actual, expected, terms, strict=True):
            assert_equal(mine, true, TOLERANCE[torch.float64], sums)

    check()


@every_operator
def test_extreme_values_do_no_harm(name):
    """NaN, infinity and huge numbers in any tensor. test_not_finite.py and the tests of RoIs and boxes
    compare the results that are not compared here."""
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(with_extremes(data.draw(SAMPLES[name])))
        if is_refused(name, sample):
            return
        try:
            actual = op.call(sample)
        except DOCUMENTED as error:
            assert name in POOLS and "image numbers" in str(error)
            return
        if name in POOLS:
            assert not actual[~sample.tensors[1].isfinite().all(1)].any()
            gradients(op.call, sample)
        # torch's convolution does not read pixels of weight zero, unlike the reference
        if not op.differentiable or name in POOLS or is_plain_convolution(sample):
            return
        grad_output = torch.linspace(-1, 1, actual.numel(), dtype=actual.dtype)
        if actual.numel() and data.draw(st.booleans()):
            grad_output[data.draw(st.integers(0, actual.numel() - 1))] = data.draw(st.sampled_from(EXTREME))
        mine = gradients(op.call, sample, grad_output.view(actual.shape))
        if not actual.numel():  # the reference multiplies gradients of zero by NaN
            assert not any(gradient.any() for gradient in mine)
            return
        true = gradients(op.reference, exact(sample), grad_output.view(actual.shape))
        terms = gradients(op.reference, op.absolute(exact(sample)), grad_output.abs().view(actual.shape))
        for each in zip(mine, true, terms, strict=True):
            assert_equal(each[0], each[1], TOLERANCE[torch.float64], each[2])

    check()


@every_operator
def test_broken_call_is_refused(name):
    """It is rejected, or it is valid and equals the reference."""
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(broken(data.draw(SAMPLES[name])))
        if is_plain_convolution(sample):
            return  # torch's own convolution, with its own errors
        try:
            actual = op.call(sample)
        except DOCUMENTED as error:
            assert str(error)
            return
        assert_same(op, sample, actual, TOLERANCE[torch.float32])

    check()
