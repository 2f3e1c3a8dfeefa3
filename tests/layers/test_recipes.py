"""The layers of docs/your_network.md beside sums over single samples, as their papers describe them."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ..processes import ROOT

PAGE = (ROOT / "docs/your_network.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(from torch import Tensor\n.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def recipes():
    variables = {"torch": torch, "nn": nn, "F": F}
    exec(CODE, variables)
    return variables


def sample(x, row, column):
    """The map at fractional positions [N, H, W], bilinear, zero outside."""
    height, width = x.shape[-2:]
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], -1)
    return F.grid_sample(x, grid, align_corners=False)


def places(x, stride=1):
    """Row and column of each output [1, H, W]."""
    rows, columns = (torch.arange(0, size, stride, dtype=x.dtype) for size in x.shape[-2:])
    return rows[None, :, None], columns[None, None, :]


def assert_equal_with_gradients(layer, expected, x):
    torch.testing.assert_close(layer(x), expected(x))
    parameters = [x, *layer.parameters()]
    weight = torch.randn_like(layer(x))
    gradients = [torch.autograd.grad((f(x) * weight).sum(), parameters) for f in (layer, expected)]
    torch.testing.assert_close(*gradients)


@pytest.fixture
def x():
    return torch.randn(2, 4, 11, 13, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("taps", [3, 9])
def test_snake_convolution(recipes, x, taps):
    layer = recipes["SnakeConv2d"](4, 6, taps).double()

    def expected(x):
        steps, centre = layer.steps(x), taps // 2
        row, column = places(x)
        total = layer.mix.bias.view(-1, 1, 1)
        for tap in range(taps):
            between = range(centre + 1, tap + 1) if tap > centre else range(tap, centre)
            y = (
                row + sum(steps[:, each] for each in between)
                if between
                else row.expand(len(x), -1, x.shape[3])
            )
            value = sample(x, y, (column + tap - centre).expand_as(y))
            total = total + torch.einsum("oc,nchw->nohw", layer.mix.weight[:, :, 0, tap], value)
        return total

    assert_equal_with_gradients(layer, expected, x)


@pytest.mark.parametrize(("taps", "stride"), [(1, 1), (5, 1), (5, 2), (7, 1), (9, 2)])
def test_ldconv(recipes, x, taps, stride):
    layer = recipes["LDConv2d"](4, 6, taps, stride).double()
    nn.init.normal_(layer.offset.weight)

    def expected(x):
        offset, side, total = layer.offset(x), round(taps**0.5), 0
        row, column = places(x, stride)
        for tap in range(taps):
            y, right = row + tap // side + offset[:, tap], column + tap % side + offset[:, taps + tap]
            total = total + torch.einsum("oc,nchw->nohw", layer.mix.weight[:, :, tap, 0], sample(x, y, right))
        return total

    assert_equal_with_gradients(layer, expected, x)


def test_large_kernel_attention(recipes, x):
    layer = recipes["DeformableLKA"](4).double()
    for each in (layer.near, layer.far):
        nn.init.normal_(each.conv_offset.weight, std=0.1)

    def depthwise(conv, x):
        offset = conv.conv_offset(x)
        (size, _), (padding, _), (dilation, _) = conv.kernel_size, conv.padding, conv.dilation
        row, column = places(x)
        total = conv.bias.view(-1, 1, 1)
        for tap in range(size**2):
            y = row - padding + dilation * (tap // size) + offset[:, 2 * tap]
            right = column - padding + dilation * (tap % size) + offset[:, 2 * tap + 1]
            weight = conv.weight[:, 0].flatten(1)[:, tap].view(-1, 1, 1)
            total = total + weight * sample(x, y, right)
        return total

    assert_equal_with_gradients(
        layer, lambda x: x * layer.mix(depthwise(layer.far, depthwise(layer.near, x))), x
    )
