"""Random calls equal the reference or raise a documented error. `nox -s fuzz` runs many more."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp

from .fuzzing import DTYPES, EXTREME, OPERATORS, SAMPLES, broken, laid_out, on_grid, with_extremes
from .op_cases import Sample, is_plain_convolution

EXAMPLES = int(os.environ.get("DCNZOO_FUZZ_EXAMPLES", "25"))  # per operator and test
# relative to the largest sum of the absolute values of a result's terms
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DIFFERENTIABLE = [name for name, op in OPERATORS.items() if op.differentiable]
POOLS = [name for name in DIFFERENTIABLE if not OPERATORS[name].continuous]
ROTATED = ("box_iou_rotated", "nms_rotated")
DOCUMENTED = (RuntimeError, TypeError, ValueError)

every_operator = pytest.mark.parametrize("name", SAMPLES)
every_differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)


def examples(test):
    """The same examples in every run of the suite, and new ones in every `nox -s fuzz`."""
    fixed = "DCNZOO_FUZZ_EXAMPLES" not in os.environ
    health = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors)
    return settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=fixed,
        database=None,
        suppress_health_check=health,
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


def moved(function: Callable, sample: Sample, tangents: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The output and its tangent, in forward mode."""
    return jvp(lambda *given: function(sample.with_given(given)), tuple(sample.given), tuple(tangents))


def tangents_of(sample: Sample) -> list[Tensor]:
    return [torch.cos(torch.arange(t.numel()).double()).view(t.shape) for t in sample.given]


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
        expected = op.any_reference(exact(sample))
        if op.absolute is None:  # returns indices
            assert torch.equal(op.call(sample), expected)
        else:
            terms = op.any_reference(op.absolute(exact(sample)))
            assert_equal(op.call(sample), expected, TOLERANCE[dtype], terms)

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
        expected = gradients(op.any_reference, exact(sample))
        ones = torch.ones_like(expected[0])
        terms = gradients(op.any_reference, op.absolute(exact(sample)), ones)
        for mine, true, sums in zip(actual, expected, terms, strict=True):
            assert_equal(mine, true, TOLERANCE[torch.float64], sums)

    check()


@every_differentiable
def test_forward_mode_is_the_adjoint_of_the_backward(name):
    """Even if forward mode uses the reference, the backward runs the kernels."""
    op = OPERATORS[name]

    @examples
    @given(st.data())
    def check(data):
        sample = data.draw(SAMPLES[name])  # torch does not support dual tensors of expanded memory
        if is_refused(name, sample):
            return
        tangents = tangents_of(sample)
        output, tangent = moved(op.call, sample, tangents)
        expected, *slopes = gradients(op.call, sample)
        assert_equal(output, expected, TOLERANCE[torch.float64], op.any_reference(op.absolute(exact(sample))))
        grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        products = [grad_output * tangent, *(-slope * t for slope, t in zip(slopes, tangents, strict=True))]
        difference = sum(product.sum() for product in products)
        terms = sum(product.abs().sum() for product in products)
        assert_equal(difference, torch.zeros_like(difference), TOLERANCE[torch.float64], terms)

    check()


def ordinary(name: str, sample: Sample) -> Tensor:
    """The RoIs that are small enough for the oracles' loops; for other operators, everything."""
    rois = sample.tensors[1]
    return ((rois.abs() < 1e3).all(1) if name in POOLS else torch.ones(())).nonzero().flatten()


def of_rois(name: str, sample: Sample, chosen: Tensor) -> Sample:
    tensors = [t[chosen] if i in (1, 2) else t for i, t in enumerate(sample.tensors)]
    return replace(sample, tensors=tuple(tensors))


def assert_rotated_overlaps(name: str, sample: Sample, actual: Tensor) -> None:
    """Extreme boxes do not change the overlaps of others. All overlaps are in [0, 1] or NaN."""
    usual = [(t.abs() < 1e3).all(-1) for t in sample.tensors]
    if name == "nms_rotated":
        kept = actual.tolist()
        assert len(set(kept)) == len(kept) and set(kept) <= set(range(len(sample.tensors[0])))
        return
    assert ((actual >= 0) & (actual <= 1) | actual.isnan()).all()
    both = usual[0] & usual[1] if sample.kwargs["aligned"] else usual[0][:, None] & usual[1]
    expected = OPERATORS[name].any_reference(exact(sample))
    assert_equal(actual[both], expected[both], TOLERANCE[torch.float64], torch.ones_like(expected[both]))


def terms_of_slopes(name: str, magnitudes: Sample) -> Tensor | float:
    """Bound the terms of deform_roi_pool's derivatives with respect to offsets that ``absolute`` lacks: the
    samples of a bin share pixels, whose terms cancel. It is the largest pixel that a sample may read."""
    if name != "deform_roi_pool":
        return 0.0
    largest = F.max_pool2d(magnitudes.tensors[0].nan_to_num(0, 0), 3, 1, 1)
    return OPERATORS[name].any_reference(replace(magnitudes, tensors=(largest, *magnitudes.tensors[1:])))


def assert_no_harm(name: str, sample: Sample, grad_output: Tensor) -> None:
    op, tolerance = OPERATORS[name], TOLERANCE[torch.float64]
    expected, magnitudes = op.any_reference(exact(sample)), op.absolute(exact(sample))
    assert_equal(op.call(sample), expected, tolerance, op.any_reference(magnitudes))
    mine = gradients(op.call, sample, grad_output)
    if not grad_output.numel():  # the reference multiplies gradients of zero by NaN
        assert not any(gradient.any() for gradient in mine)
        return
    true = gradients(op.any_reference, exact(sample), grad_output)
    terms = gradients(op.any_reference, magnitudes, grad_output.abs())
    slopes = terms_of_slopes(name, magnitudes)
    if name == "deform_roi_pool":
        terms[-1] = terms[-1].abs() + (slopes * grad_output.abs().nan_to_num(0, 0)).sum(1, keepdim=True)
    for each in zip(mine, true, terms, strict=True):
        assert_equal(each[0], each[1], tolerance, each[2])
    tangents = tangents_of(sample)
    mine, true = (moved(f, sample, tangents) for f in (op.call, op.any_reference))
    terms = moved(op.any_reference, magnitudes, [t.abs() for t in tangents])
    for each in zip(mine, true, (terms[0], terms[1].abs() + slopes), strict=True):
        assert_equal(each[0], each[1], tolerance, each[2])


@every_operator
def test_extreme_values_do_no_harm(name):
    """NaN, infinity and huge numbers in any tensor: forward, backward and forward mode."""
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
        if name == "nms":
            assert torch.equal(actual, op.any_reference(exact(sample)))
            return
        if name in ROTATED:
            assert_rotated_overlaps(name, sample, actual)
            return
        if is_plain_convolution(sample):
            return  # torch's convolution does not read pixels of weight zero, unlike the reference
        if name in POOLS:
            rest = ordinary(name, sample)
            others = torch.ones(len(actual), dtype=torch.bool)
            others[rest] = False
            infinite = others & ~sample.tensors[1].isfinite().all(1)
            assert not actual[infinite].any()
            gradients(op.call, sample)
            moved(op.call, sample, tangents_of(sample))
            sample = of_rois(name, sample, rest)
            actual = op.call(sample)
        grad_output = torch.linspace(-1, 1, actual.numel(), dtype=actual.dtype)
        if actual.numel() and data.draw(st.booleans()):
            grad_output[data.draw(st.integers(0, actual.numel() - 1))] = data.draw(st.sampled_from(EXTREME))
        assert_no_harm(name, sample, grad_output.view(actual.shape))

    check()


def test_huge_pixel_that_cancels():
    """Two samples of a bin are on both sides of it. The sum of their slopes is (p - 2) + (-3 - p) = -5, times
    the reach, .2, over 2 columns of samples. The reference, sample by sample, rounds it to 0."""
    row = torch.tensor([[[[2, 1e30, -3]]]], dtype=torch.float64)
    rois = torch.tensor([[0, 1, 1, 9, 3]], dtype=torch.float64)
    settings = {"output_size": (1, 1), "spatial_scale": 0.25, "sampling_ratio": 2}
    sample = Sample("", (row, rois, torch.zeros(1, 2, 1, 1).double()), settings, constant=(1,))
    ones = torch.ones(1, 1, 1, 1).double()
    slope = gradients(OPERATORS["deform_roi_pool"].call, sample, ones)[-1]
    torch.testing.assert_close(slope, torch.tensor([-0.5, 0]).double().view(1, 2, 1, 1))
    assert_no_harm("deform_roi_pool", sample, ones)


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
        expected = op.any_reference(exact(sample))
        if op.absolute is None:
            assert torch.equal(actual, expected)
        else:
            terms = op.any_reference(op.absolute(exact(sample)))
            assert_equal(actual, expected, TOLERANCE[torch.float32], terms)

    check()
