"""``dcnzoo.layers``: an ``nn.Conv2d`` with offsets and a mask."""

import pytest
import torch
from torch import nn

import dcnzoo.ops.reference as reference
from dcnzoo.layers import DeformConv2d

GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def test_is_conv2d_without_offset_and_mask():
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, (3, 2), groups=2, **GEOMETRY)
    plain = nn.Conv2d(4, 6, (3, 2), groups=2, **GEOMETRY)
    layer.load_state_dict(plain.state_dict())  # the same parameters
    input = torch.randn(2, 4, 9, 7)
    assert torch.equal(layer(input), plain(input))


def test_starts_as_conv2d():
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3)
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, 3)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("im2col_step", [None, 2])
def test_forward_and_backward(bias, with_mask, im2col_step):
    torch.manual_seed(0)
    layer = DeformConv2d(
        4, 6, (3, 2), groups=2, bias=bias, im2col_step=im2col_step, dtype=torch.float64, **GEOMETRY
    )
    input = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    offset = torch.randn(3, 24, 5, 9, dtype=torch.float64).requires_grad_()
    mask = torch.rand(3, 24, 5, 9, dtype=torch.float64)[:, :12] if with_mask else None
    output = layer(input, offset, mask)
    expected = reference.deform_conv(input, layer.weight, offset, mask, layer.bias, *GEOMETRY.values(), 2)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    inputs = [offset, *layer.parameters()]
    got, want = (torch.autograd.grad(o.square().sum(), inputs) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)


def test_arguments():
    layer = DeformConv2d(4, 6, 3, 2, 1, 1, 2, False, im2col_step=8)
    assert layer.bias is None
    assert (layer.stride, layer.padding, layer.im2col_step) == ((2, 2), (1, 1), 8)
    assert "4, 6, kernel_size=(3, 3), stride=(2, 2)" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"stride": (1, 1, 1)},
            r"DeformConv2d: stride: expected an integer or 2 of them, got \(1, 1",
        ),
        (
            {"padding": "same"},
            r"DeformConv2d: padding: expected an integer or 2 of them, got 'same'",
        ),
        ({"groups": 3}, "in_channels must be divisible by groups"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformConv2d(4, 6, 3, **arguments)
