"""Inf and NaN in any tensor, forward and backward: the results that they affect. Also empty maps.

The rule (docs/ops/deform_conv.md) is the plain formula. Pixels and corners outside the map are not read and
do not count. All values that are read are multiplied, even by a weight, a mask or a value of zero.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.ops
from dcnzoo.ops import deform_conv2d, deform_conv_transpose2d
from tests import op_cases
from tests.helpers.not_finite import (
    CASES,
    INF,
    NAN,
    assert_pooling_reads_no_more,
    assert_reaches_what_the_formula_reads,
)

every_case = pytest.mark.parametrize(("op", "sample"), CASES, ids=[f"{o.name}-{s.name}" for o, s in CASES])


@every_case
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.float32], ids=str
)
def test_reaches_what_the_formula_reads(op, sample, dtype):
    assert_reaches_what_the_formula_reads(op, sample, dtype, (INF, -INF, NAN))


@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_infinity_at_the_border_stays_infinity(value, dtype, format):
    """Corners outside the map do not contribute Inf · 0."""
    weight, offset = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, 2, 1, 1, dtype=dtype)
    input = torch.full((1, 1, 1, 1), value, dtype=dtype).requires_grad_()
    expected = F.conv2d(input, weight)
    assert torch.equal(deform_conv2d(input, weight, offset), expected)
    assert torch.equal(deform_conv_transpose2d(input, weight, offset), F.conv_transpose2d(input, weight))
    finite = torch.ones_like(input, requires_grad=True)
    output = deform_conv2d(finite, weight, offset)
    (grad,) = torch.autograd.grad(output, finite, torch.full_like(output, value))
    assert (grad == value).all()
    # a map with several pixels, sampled at its far corner
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 33, 3, 4, generator=generator).to(dtype)
    wide[:, :, -1, -1] = value
    weight = torch.rand(5, 33, 1, 1, generator=generator).to(dtype) + 0.5
    output = deform_conv2d(
        wide.contiguous(memory_format=format), weight, torch.zeros(2, 2, 3, 4, dtype=dtype)
    )
    assert (output[:, :, -1, -1] == value).all()
    assert output[:, :, 0, 0].isfinite().all()


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinite_mask(value):
    """The mask multiplies the interpolated value: a corner of weight zero does not give NaN."""
    input, weight = torch.full((1, 40, 3, 4), 2.0), torch.ones(3, 40, 1, 1)
    mask = torch.full((1, 1, 3, 4), value)
    assert (deform_conv2d(input, weight, torch.zeros(1, 2, 3, 4), mask) == value).all()


def test_gradients_of_a_group_read_no_other():
    input, offset = torch.ones(1, 6, 2, 2), torch.full((1, 4, 2, 2), 0.5, requires_grad=True)
    input[:, 3:] = INF
    deform_conv2d(input, torch.ones(1, 6, 1, 1), offset).backward(torch.ones(1, 1, 2, 2))
    assert offset.grad.isfinite().sum((0, 2, 3)).tolist() == [4, 4, 0, 0]


@pytest.mark.parametrize("channels", [8, 12, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_outputs_keep_their_bits(channels, dtype):
    """Outputs that read no NaN are the same, also at borders and in the tile of an output that reads it."""
    tensors = op_cases.deform_conv.make("bits", batch=1, channels=channels, padding=1).to(dtype).tensors
    expected = deform_conv2d(*tensors, padding=1)
    tensors[0][0, 1, 3, 4] = NAN
    output = deform_conv2d(*tensors, padding=1)
    finite = output.isfinite()
    assert 0 < finite.sum() < finite.numel()
    assert torch.equal(output[finite], expected[finite])


# RoI pooling


def test_pooling_reads_no_more():
    assert_pooling_reads_no_more(lambda overload, *arguments: overload(*arguments))


# Empty maps


def outcome(function, *arguments, **options) -> str:
    try:
        return str(tuple(function(*arguments, **options).shape))
    except RuntimeError as error:
        assert str(error)
        return "error"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_empty_maps_are_as_in_torch(dtype):
    """Errors match those of torch's convolution. Transposed convolution and RoI pooling always fail."""
    for rank, batch, transposed in itertools.product((1, 2, 3), (0, 2), (False, True)):
        for size in itertools.product((0, 3), repeat=rank):
            if 0 not in size:
                continue
            padding = 0 if transposed else 1
            input = torch.zeros(batch, 4, *size, dtype=dtype)
            weight = torch.ones(4, 4, *[1] * rank, dtype=dtype)
            offset = torch.zeros(batch, rank, *(s + 2 * padding for s in size), dtype=dtype)
            name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
            for format in [torch.contiguous_format] + [torch.channels_last] * (rank == 2):
                arguments = (input.contiguous(memory_format=format), weight)
                expected = outcome(getattr(F, name), *arguments, padding=padding)
                ours = outcome(getattr(dcnzoo.ops, f"deform_{name}"), *arguments, offset, padding=padding)
                assert ours == ("error" if transposed else expected), (name, size, batch)
    for size in ((0, 0), (0, 3), (3, 0)):
        maps, fields = torch.zeros(1, *size, 16, dtype=dtype), torch.zeros(1, *size, 18, dtype=dtype)
        rois, first = torch.tensor([[0.0, 0, 0, 2, 2]], dtype=dtype), torch.zeros(1, 3, *size, dtype=dtype)
        for call in (
            lambda: dcnzoo.ops.dcnv3(maps, fields, fields[..., :9], 3, 1, 1, 1, 1, 16, 1.0, False),  # noqa: B023
            lambda: dcnzoo.ops.roi_align(first, rois, 2),  # noqa: B023
            lambda: dcnzoo.ops.deform_roi_pool(first, rois, None, 2),  # noqa: B023
        ):
            assert outcome(call) == "error"
