"""What deform_conv means, beyond agreeing with the reference: identities, borders, chunks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.ops import deform_conv2d
from dcnzoo.ops import reference as oracle

from .op_cases.deform_conv import call, make, reference
from .test_ops import assert_same


def test_hand_worked_example():
    """One tap, one pixel: 0.25·0.5·1 + 0.25·0.5·2 + 0.75·0.5·3 + 0.75·0.5·4, times mask, plus bias."""
    input = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    weight = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    offset[0, :, 0, 0] = torch.tensor([0.75, 0.5])  # y, then x
    mask = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    bias = torch.tensor([10.0], dtype=torch.float64)
    expected = torch.tensor([[[[13.0, 12.0], [13.0, 14.0]]]], dtype=torch.float64)
    expected[0, 0, 0, 0] = 10 + 2 * 0.5 * (0.125 * 1 + 0.125 * 2 + 0.375 * 3 + 0.375 * 4)
    arguments = (input, weight, offset, mask, bias)
    torch.testing.assert_close(deform_conv2d(*arguments), expected)
    torch.testing.assert_close(oracle.deform_conv(*arguments, (1, 1), (0, 0), (1, 1), 1), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(1, 1, 1), ((2, 1), (1, 2), (1, 2)), ((1, 3), (2, 0), (2, 1))],
)
def test_zero_offset_is_plain_convolution(groups, stride, padding, dilation):
    sample = make("plain", channels=8, groups=groups, stride=stride, padding=padding, dilation=dilation)
    input, weight, offset, mask, bias = sample.tensors
    expected = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    for field, ones in ((offset * 0, torch.ones_like(mask)), (offset * 0, None), (None, None)):
        actual = deform_conv2d(input, weight, field, ones, bias, **sample.kwargs)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("down", "right"), [(0, 1), (2, 0), (-1, 3), (-2, -2)])
def test_integer_offset_reads_a_shifted_input(down, right):
    sample = make("shift", padding=1, mask_groups=None)
    input, weight, offset, _, bias = sample.tensors
    offset = torch.zeros_like(offset)
    offset[:, 0::2], offset[:, 1::2] = down, right
    # shifted[y, x] = input[y + down, x + right] on the map padded with zeros, margin included
    margin = 4
    wide = F.pad(input, [margin + 1] * 4)
    shifted = torch.roll(wide, (-down, -right), (2, 3))[..., margin:-margin, margin:-margin]
    expected = F.conv2d(shifted, weight, bias)
    actual = deform_conv2d(input, weight, offset, None, bias, padding=1)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_samples_on_borders_and_grid_lines(axis):
    """One tap at chosen coordinates along one axis, in the middle of the other; output and gradients."""
    height, width = 4, 6
    size = (height, width)[axis]
    coordinates = [-1.5, -1.0, -0.999, -0.5, 0.0, 0.5, 1.0, size - 1.0, size - 0.5, size - 0.001]
    coordinates += [float(size), size + 0.5, 1e30, -1e30]
    count = len(coordinates)
    generator = torch.Generator().manual_seed(5)
    input = torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 3, 1, 1, generator=generator, dtype=torch.float64)
    # The output is as large as the input: put one coordinate at each output pixel, row by row.
    position = torch.full((2, height * width), 1.25, dtype=torch.float64)
    position[axis, :count] = torch.tensor(coordinates, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).reshape(
        2, -1
    )
    offset = (position - grid).view(1, 2, height, width)
    mask = torch.rand(1, 1, height, width, generator=generator, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (input, weight, offset, mask)]
    ours = deform_conv2d(*tensors)
    true = oracle.deform_conv(*tensors, None, (1, 1), (0, 0), (1, 1), 1)
    torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
    for i, coordinate in enumerate(coordinates):
        if coordinate <= -1 or coordinate >= size:
            assert (ours.flatten(2)[0, :, i] == 0).all()
    grad = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    mine, reference_gradients = (torch.autograd.grad(o, tensors, grad) for o in (ours, true))
    for a, b in zip(mine, reference_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    offset_gradient = mine[2].flatten(2)[0]
    at_minus_one = coordinates.index(-1.0)
    assert (offset_gradient[:, at_minus_one] == 0).all(), "mmcv's rule at exactly -1"
    assert (offset_gradient[axis, coordinates.index(-0.5)] != 0).all(), "a gradient back into the map"


def test_outside_samples_stay_zero_where_the_map_is_not_finite():
    sample = make("infinite map", padding=1)
    input = torch.full_like(sample.tensors[0], float("inf"))
    offset = torch.full_like(sample.tensors[2], 1e4)
    output = deform_conv2d(input, sample.tensors[1], offset, sample.tensors[3], padding=1)
    assert (output == 0).all()


@pytest.mark.parametrize(
    ("batch", "step"), [(0, 1), (1, 7), (33, 1), (33, 32), (33, None), (65, 7), (65, 64), (65, 1000)]
)
def test_any_batch_with_any_im2col_step(batch, step):
    sample = make("step", batch=batch, channels=4, size=(5, 6), padding=1, im2col_step=step)
    assert_same(SimpleNamespace(call=call, reference=reference), sample, sample, 1e-10)


@pytest.mark.parametrize(
    ("groups", "offset_groups", "mask_groups"),
    [(1, 1, 1), (1, 3, 6), (2, 1, 4), (2, 2, 1), (2, 3, 4), (4, 1, 6), (4, 2, 4), (4, 3, 1)],
)
def test_groups_are_independent(groups, offset_groups, mask_groups):
    parts = dict(groups=groups, offset_groups=offset_groups, mask_groups=mask_groups)
    sample = make("groups", channels=12, padding=1, **parts)
    assert_same(SimpleNamespace(call=call, reference=reference), sample, sample, 1e-10)


def test_channels_last_in_channels_last_out():
    sample = make("format", padding=1)
    input, *rest = sample.tensors
    last = input.contiguous(memory_format=torch.channels_last).requires_grad_()
    output = deform_conv2d(last, *rest, padding=1)
    assert output.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(output.sum(), last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, deform_conv2d(input, *rest, padding=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_input_with_float32_offsets(dtype):
    """Coordinates keep float32's precision next to half-precision maps."""
    sample = make("mixed", padding=1, size=(6, 300)).to(torch.float32)
    input, weight, offset, mask, bias = sample.tensors
    tensors = [t.to(dtype) for t in (input, weight)] + [offset, mask, bias.to(dtype)]
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = deform_conv2d(*leaves, padding=1)
    assert output.dtype == dtype
    exact = deform_conv2d(*[t.double() for t in tensors], padding=1)
    error = (output.double() - exact).abs().max() / exact.abs().max()
    assert error <= torch.finfo(dtype).eps
    output.float().sum().backward()
    assert [t.grad.dtype for t in leaves] == [dtype, dtype, torch.float32, torch.float32, dtype]


@pytest.mark.parametrize("groups", [1, 3])
def test_map_that_is_staged_in_several_passes(groups):
    """CPU kernels stage a bounded number of channels at a time and add up over the passes."""
    size = dict(batch=1, channels=192, out_channels=3, size=(95, 128), kernel=(1, 2))
    sample = make("large", groups=groups, offset_groups=2, mask_groups=1, **size)
    assert sample.tensors[0].nbytes > 16 << 20
    assert_same(SimpleNamespace(call=call, reference=reference), sample, sample, 1e-10)


def test_bias_gradient_does_not_depend_on_threads():
    """One output channel: its sum alone is split among threads."""
    generator = torch.Generator().manual_seed(0)
    input = torch.zeros(2, 1, 250, 200)
    weight, bias = torch.zeros(1, 1, 1, 1), torch.zeros(1, requires_grad=True)
    grad = torch.randn(2, 1, 250, 200, generator=generator) + 0.1
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for laid_out in (grad, grad.contiguous(memory_format=torch.channels_last)):
                output = deform_conv2d(input, weight, torch.zeros(2, 2, 250, 200), bias=bias)
                results.append(torch.autograd.grad(output, bias, laid_out)[0])
    finally:
        torch.set_num_threads(threads)
    exact = grad.double().sum().float()
    assert all(torch.equal(result, exact.view(1)) for result in results)
