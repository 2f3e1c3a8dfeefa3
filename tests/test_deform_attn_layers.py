"""``DCNv3`` and ``DCNv4`` of ``dcnzoo.layers``: initial values, strides, statistics, errors.

``test_official_layers.py`` tests their parameters and results.
"""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcnzoo.layers import DCNv3, DCNv4

from . import modules


def test_initial_outputs():
    """A new DCNv3 is an average pooling; a new DCNv4 returns its bias."""
    layer, x = DCNv3(12, group=3).double(), image()
    pooled = F.avg_pool2d(layer.input_proj(x).permute(0, 3, 1, 2), 3, stride=1, padding=1)
    torch.testing.assert_close(layer(x), layer.output_proj(pooled.permute(0, 2, 3, 1)), **TOLERANCE)
    layer = DCNv4(12, group=3).double()
    nn.init.normal_(layer.output_proj.bias)
    torch.testing.assert_close(layer(x), layer.output_proj.bias.expand_as(x), **TOLERANCE)


both = pytest.mark.parametrize("layer", [DCNv3, DCNv4])
GEOMETRY = ((3, 3), (1, 1), (1, 1), (1, 1))
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def randomise(module):
    return modules.randomise(module).double()


def image(*, channels=12, **options):
    return torch.randn(2, 7, 9, channels, dtype=torch.float64, **options)


@both
@pytest.mark.parametrize("options", [{}, {"dw_kernel_size": 5, "center_feature_scale": True}])
def test_a_stride_thins_the_output_out(layer, options):
    dense = randomise(layer(12, dilation=2, pad=2, group=3, **options))
    strided = layer(12, dilation=2, pad=2, group=3, stride=2, **options).double()
    strided.load_state_dict(dense.state_dict())
    x = image()
    torch.testing.assert_close(strided(x), dense(x)[:, ::2, ::2], **TOLERANCE)


@both
@pytest.mark.parametrize(
    "arguments",
    [
        {"group": 5},
        {"group": 0},
        {"stride": 0},
        {"stride": 1.5},
        {"dilation": 0, "pad": 0},
        {"kernel_size": (3, 3)},
        {"kernel_size": 1, "pad": 0, "remove_center": True},
        {"kernel_size": 2},
        {"dw_kernel_size": 4},
        {"pad": 0},
    ],
)
def test_refuses_arguments(layer, arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=rf"^{layer.__name__}: {name}: .*got {re.escape(str(value))}$"):
        layer(12, **{"group": 3, **arguments})
    with pytest.raises(RuntimeError, match=r"channels last, got \(2, 12, 7, 9\)"):
        layer(12, group=3)(torch.randn(2, 12, 7, 9))
    for name, value in (("act_layer", "Mish"), ("norm_layer", "GN")):
        with pytest.raises(ValueError, match=f"{name}: .*got '{value}'"):
            DCNv3(12, group=3, **{name: value})


@pytest.mark.parametrize(
    ("input", "shape", "message"),
    [
        ((2, 63, 12), (), r"shape: .*63, .* got \(7, 7\)"),
        ((2, 63, 12), ((8, 8),), r"shape: .*got \(8, 8\)"),
        ((2, 63, 12), (8,), "shape: .*got 8$"),
        ((2, 7, 9, 12), ((9, 7),), r"shape: .*got \(9, 7\)"),
        ((2, 12, 63), ((7, 9),), r"input: .*got \(2, 12, 63\)"),
    ],
)
def test_dcnv4_refuses_a_shape_that_is_not_its_lengths(input, shape, message):
    with pytest.raises(RuntimeError, match=f"DCNv4: {message}"):
        DCNv4(12, group=3)(torch.randn(input), *shape)


@both
def test_defaults_are_the_official_ones(layer):
    names = ("channels", "kernel_size", "stride", "pad", "dilation", "group", "offset_scale")
    assert [getattr(layer(), name) for name in names] == [64, 3, 1, 1, 1, 4, 1.0]
