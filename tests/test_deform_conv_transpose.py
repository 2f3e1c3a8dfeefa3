"""What deform_conv_transpose means, beyond agreeing with the reference: adjoint, identities, borders."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.ops
from dcnzoo.ops import deform_conv_transpose2d
from dcnzoo.ops import reference as oracle

from .op_cases.deform_conv import geometry
from .op_cases.deform_conv_transpose import call, make, samples

PLAIN = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
# stride, padding, output_padding, dilation; the last with output_padding from the dilation's room
GEOMETRIES = [
    ((1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1)),
    ((2, 3, 2), (1, 0, 1), (1, 2, 0), (1, 2, 1)),
    ((1, 2, 1), (1, 1, 0), (2, 3, 1), (3, 4, 2)),
]


def test_hand_worked_example():
    """One pixel, 2, one tap of weight 3, mask 0.5: 3 parted among the four pixels around (0.75, 0.5)."""
    input = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    weight = torch.tensor([[[[3.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    offset = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    offset[0, :2, 0, 0] = torch.tensor([0.75, 0.5])  # y, then x
    mask = torch.full((1, 4, 1, 1), 0.5, dtype=torch.float64)
    bias = torch.tensor([10.0], dtype=torch.float64)
    expected = torch.tensor([[[[10 + 0.375, 10 + 0.375], [10 + 1.125, 10 + 1.125]]]], dtype=torch.float64)
    arguments = (input, weight, offset, mask, bias)
    torch.testing.assert_close(deform_conv_transpose2d(*arguments), expected)
    true = oracle.deform_conv_transpose(*arguments, (1, 1), (0, 0), (0, 0), (1, 1), 1)
    torch.testing.assert_close(true, expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_zero_offset_is_plain_transposed_convolution(rank, groups, geometry):
    stride, padding, output_padding, dilation = (values[:rank] for values in geometry)
    size, kernel = (5, 6, 4)[:rank], (3, 2, 2)[:rank]
    sample = make("plain", size=size, kernel=kernel, groups=groups)
    input, weight, offset, mask, bias = sample.tensors
    expected = PLAIN[rank](input, weight, bias, stride, padding, output_padding, groups, dilation)
    function = getattr(dcnzoo.ops, f"deform_conv_transpose{rank}d")
    for field, ones in ((offset * 0, mask * 0 + 1), (offset * 0, None), (None, mask * 0 + 1), (None, None)):
        actual = function(input, weight, field, ones, bias, stride, padding, output_padding, dilation, groups)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_bias_gradient_does_not_depend_on_threads():
    """One output channel: torch splits a sum with a single result among threads."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(2, 1, 251, 201, generator=generator)
    input, weight = torch.zeros(2, 1, 250, 200), torch.zeros(1, 1, 2, 2)
    bias = torch.zeros(1, requires_grad=True)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            output = deform_conv_transpose2d(input, weight, torch.zeros(2, 8, 250, 200), bias=bias)
            results.append(torch.autograd.grad(output, bias, grad)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], grad.double().sum().float().view(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_is_the_adjoint_of_deform_conv(rank):
    """⟨deform_conv(y), x⟩ = ⟨y, deform_conv_transpose(x)⟩, with one weight, offset and mask."""
    for sample in samples(rank):
        if sample.name == "neither":
            continue
        x, weight, offset, mask, _ = sample.tensors
        stride, padding, output_padding, dilation = geometry(
            sample, stride=1, padding=0, output_padding=0, dilation=1
        )
        # more than that is not the size of any deform_conv's input
        output_padding = [min(p, s - 1) for p, s in zip(output_padding, stride, strict=True)]
        given = {"stride": stride, "padding": padding, "dilation": dilation}
        given["groups"] = sample.kwargs.get("groups", 1)
        transpose, plain = (getattr(dcnzoo.ops, f"deform_conv{name}{rank}d") for name in ("_transpose", ""))
        image = transpose(x, weight, offset, mask, output_padding=output_padding, **given)
        y = torch.linspace(-1, 1, image.numel(), dtype=torch.float64).view(image.shape)
        left = (plain(y, weight, offset, mask, **given) * x).sum()
        torch.testing.assert_close(left, (y * image).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axis", [0, 1])
def test_border(axis):
    """At -1 and at the size nothing is written and there is no gradient; in between it fades out."""
    size = (4, 6)
    coordinates = [-1.5, -1.0, -0.75, 0.0, size[axis] - 1.0, size[axis] - 0.25, float(size[axis]), 1e30]
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for coordinate in coordinates:
        offset = torch.zeros(1, 2, *size, dtype=torch.float64)
        offset[0, axis, 0, 0] = coordinate
        input = torch.zeros(1, 1, *size, dtype=torch.float64)
        input[..., 0, 0] = 1
        tensors = [t.requires_grad_() for t in (input, weight, offset)]
        output = deform_conv_transpose2d(*tensors)
        inside = -1 < coordinate < size[axis]
        share = 1 - max(-coordinate, coordinate - (size[axis] - 1), 0) if inside else 0
        assert output.sum().item() == pytest.approx(share)
        gradient = torch.autograd.grad(output.sum(), tensors[2])[0][0, axis, 0, 0].item()
        low, fraction = math.floor(coordinate), coordinate % 1
        if not inside:
            assert gradient == 0
        elif fraction:
            assert gradient == (1 if low == -1 else -1)


def test_infinite_values_are_not_spread_from_outside():
    sample = make("infinite", padding=1)
    _, weight, offset, mask, _ = sample.tensors
    input = torch.full_like(sample.tensors[0], float("inf"))
    output = deform_conv_transpose2d(input, weight, torch.full_like(offset, 1e4), mask)
    assert (output == 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_channels_last_in_channels_last_out(bias):
    input, *rest = make("format", padding=1, bias=bias).tensors
    output = deform_conv_transpose2d(input.contiguous(memory_format=torch.channels_last), *rest, padding=1)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, deform_conv_transpose2d(input, *rest, padding=1))


@pytest.mark.parametrize(("batch", "step"), [(0, 1), (1, 7), (33, 32), (33, None), (65, 64)])
def test_any_batch_with_any_im2col_step(batch, step):
    sample = make("step", batch=batch, size=(3, 4), im2col_step=step)
    expected = call(make("step", batch=batch, size=(3, 4)))
    torch.testing.assert_close(call(sample), expected, rtol=1e-12, atol=1e-12)
