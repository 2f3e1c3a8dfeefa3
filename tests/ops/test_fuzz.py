"""Random calls equal the reference or raise a documented error. `nox -s fuzz` runs many more.

A sample named ``zero …`` has a size of zero that an operator may reject. Empty batches and empty sets of
RoIs, boxes, queries or points are drawn as well, but must not be rejected.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import op_cases
from tests.op_cases import LAYOUTS, Operator, Sample, is_plain_convolution, ramp

EXAMPLES = int(os.environ.get("DCNZOO_FUZZ_EXAMPLES", "12"))  # per operator and test
# relative to the largest sum of the absolute values of a result's terms
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DOCUMENTED = (RuntimeError, TypeError, ValueError)
# invalid as a coordinate, weight or pixel, or undefined when cast to an integer
EXTREME = (math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -(2.0**31) - 1, 2.0**63, -0.0, 1e-40)
NUMBERS = st.sampled_from([-(2**62), -1, 0, 1, 3, 2**31, 2**62])

OPERATORS = {op.name: op for op in op_cases.operators(differentiable=False)}
DIFFERENTIABLE = [name for name, op in OPERATORS.items() if op.differentiable]
POOLS = [name for name in DIFFERENTIABLE if not OPERATORS[name].continuous]
every_operator = pytest.mark.parametrize("name", OPERATORS)


def random_samples(op: Operator) -> st.SearchStrategy[Sample]:
    """One of seven samples has a size of zero."""

    def sample(rng: Random) -> Sample:
        nothing = rng.choice(op.can_be_zero) if op.can_be_zero and rng.randint(0, 6) == 6 else ""
        return op.random_sample(rng, nothing)

    return st.randoms(use_true_random=False).map(sample)


SAMPLES = {name: random_samples(op) for name, op in OPERATORS.items()}


@st.composite
def with_extremes(draw: st.DrawFn, sample: Sample) -> Sample:
    """Replace some elements by extreme values."""
    tensors = [None if t is None else t.clone() for t in sample.tensors]
    for _ in range(draw(st.integers(1, 5))):
        chosen = draw(st.sampled_from([t for t in tensors if t is not None]))
        if chosen.numel():
            chosen.view(-1)[draw(st.integers(0, chosen.numel() - 1))] = draw(st.sampled_from(EXTREME))
    return replace(sample, tensors=tuple(tensors))


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor) if tensor.shape[0] else tensor


def overlapping(tensor: Tensor) -> Tensor:
    """Rows that start one element apart and so overlap in memory."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        return tensor
    stride = list(tensor.stride())
    stride[-2] = 1
    return tensor.contiguous().as_strided(tensor.shape, stride)


@st.composite
def laid_out(draw: st.DrawFn, sample: Sample) -> Sample:
    """Give each tensor its own memory layout."""
    tensors = []
    for place, tensor in enumerate(sample.tensors):
        # expanded and overlapping change values, which image numbers in rois do not allow
        layouts = (torch.clone, *LAYOUTS)
        layouts += () if place in sample.constant else (expanded, overlapping)
        tensors.append(None if tensor is None else draw(st.sampled_from(layouts))(tensor))
    return replace(sample, tensors=tuple(tensors))


@st.composite
def broken(draw: st.DrawFn, sample: Sample) -> Sample:
    """Change one argument, which is then wrong or valid by chance."""
    places = [i for i, t in enumerate(sample.tensors) if t is not None]
    numbers = [name for name, value in sample.kwargs.items() if type(value) in (int, tuple)]
    what = draw(st.sampled_from(["size", "dimension", "dtype", *["number"] * bool(numbers)]))
    if what == "number":
        name, value = draw(st.sampled_from(numbers)), draw(NUMBERS)
        old = sample.kwargs[name]
        if isinstance(old, tuple):
            axis = draw(st.integers(0, len(old) - 1))
            value = (*old[:axis], value, *old[axis + 1 :])
        return replace(sample, kwargs={**sample.kwargs, name: value})
    tensors = list(sample.tensors)
    place = draw(st.sampled_from(places))
    tensor = tensors[place]
    if what == "dtype":
        dtypes = [torch.int64, torch.bool, torch.complex64, torch.float32]
        tensors[place] = tensor.to(draw(st.sampled_from(dtypes)))
    elif what == "dimension":
        tensors[place] = tensor[None] if draw(st.booleans()) else tensor.flatten()
    else:
        axis = draw(st.integers(0, tensor.dim() - 1))
        size = draw(st.sampled_from([0, tensor.shape[axis] + 1, max(tensor.shape[axis] - 1, 0)]))
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
        tensors[place] = torch.ones(shape, dtype=tensor.dtype)
    return replace(sample, tensors=tuple(tensors))


def examples(test):
    """The same examples in every run of the suite, and new ones in every `nox -s fuzz`."""
    fixed = "DCNZOO_FUZZ_EXAMPLES" not in os.environ
    health = (HealthCheck.too_slow, HealthCheck.data_too_large)
    return settings(
        max_examples=EXAMPLES, deadline=None, derandomize=fixed, database=None, suppress_health_check=health
    )(test)


def exact(sample: Sample) -> Sample:
    """The sample for the reference: the same numbers in float64, in separate memory."""
    return sample.map(lambda t: t.double().clone(memory_format=torch.contiguous_format))


def is_refused(name: str, sample: Sample) -> bool:
    """Whether a size of zero is an error. test_not_finite.py tests where it must be one."""
    if not sample.name.startswith("zero"):
        return False
    if is_plain_convolution(sample):
        return True  # torch's own convolution
    try:
        OPERATORS[name].call(sample)
    except DOCUMENTED as error:
        assert str(error)
        return True
    return False


def gradients(function: Callable, sample: Sample, grad_output: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of the differentiable tensors."""
    wanted = [t.detach().requires_grad_() for t in sample.given]
    # without RoIs, the reference's result does not depend on its arguments
    output = function(sample.with_given(wanted)) + sum(t.flatten()[:0].sum() for t in wanted)
    if grad_output is None:
        grad_output = ramp(output)
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float, terms: Tensor | None = None) -> None:
    """Check that the same elements are finite, and that these are equal.

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
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@examples
@given(data=st.data())
def test_result_is_the_references(name, dtype, data):
    op = OPERATORS[name]
    sample = data.draw(SAMPLES[name])
    # RoIAlign is discontinuous at a map's border, where rounding decides
    if name not in POOLS and data.draw(st.booleans()):
        sample = sample.map(torch.round)  # points exactly on pixels and borders
    sample = data.draw(laid_out(sample.to(dtype)))
    if is_refused(name, sample):
        return
    assert_same(op, sample, op.call(sample), TOLERANCE[dtype])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@examples
@given(data=st.data())
def test_gradients_are_the_references(name, data):
    op = OPERATORS[name]
    sample = data.draw(laid_out(data.draw(SAMPLES[name])))
    if is_refused(name, sample):
        return
    actual = gradients(op.call, sample)
    expected = gradients(op.reference, exact(sample))
    terms = gradients(op.reference, op.absolute(exact(sample)), torch.ones_like(expected[0]))
    for mine, true, sums in zip(actual, expected, terms, strict=True):
        assert_equal(mine, true, TOLERANCE[torch.float64], sums)


@every_operator
@examples
@given(data=st.data())
def test_extreme_values_do_no_harm(name, data):
    """NaN, infinity and huge numbers in any tensor. test_not_finite.py and the tests of RoIs and boxes
    compare the results that are not compared here."""
    op = OPERATORS[name]
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
    grad = ramp(actual)
    if actual.numel() and data.draw(st.booleans()):
        grad.view(-1)[data.draw(st.integers(0, actual.numel() - 1))] = data.draw(st.sampled_from(EXTREME))
    mine = gradients(op.call, sample, grad)
    if not actual.numel():  # the reference multiplies gradients of zero by NaN
        assert not any(gradient.any() for gradient in mine)
        return
    true = gradients(op.reference, exact(sample), grad)
    terms = gradients(op.reference, op.absolute(exact(sample)), grad.abs())
    for each in zip(mine, true, terms, strict=True):
        assert_equal(each[0], each[1], TOLERANCE[torch.float64], each[2])


@every_operator
@examples
@given(data=st.data())
def test_broken_call_is_refused(name, data):
    """The call is rejected, or it is valid and equals the reference."""
    op = OPERATORS[name]
    sample = data.draw(broken(data.draw(SAMPLES[name])))
    if is_plain_convolution(sample):
        return  # torch's own convolution, with its own errors
    try:
        actual = op.call(sample)
    except DOCUMENTED as error:
        assert str(error)
        return
    assert_same(op, sample, actual, TOLERANCE[torch.float32])
