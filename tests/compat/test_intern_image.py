"""The compiled modules of InternImage and FlashInternImage, called as in the projects."""

import importlib

import pytest
import torch
from torch import nn

from dcnzoo.compat import patches
from dcnzoo.compat.deformable_detr import MSDeformAttn
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.ops import reference

from ..op_cases import output_size
from .programs import SHAPES, STARTS, attention, attention_leaves, compare, random

# kernel, stride, padding and dilation; remove_center, which version 1.0 does not have
DCNV3 = [
    ((5, 3), (2, 1), (1, 2), (1, 2), ()),
    ((3, 5), (1, 2), (2, 0), (2, 1), (0,)),
    ((3, 3), (1, 1), (1, 1), (1, 1), (1,)),
]


def dcnv3_sizes(kernel, *others) -> tuple[int, int, int]:
    *geometry, last = others
    return *output_size((9, 7), kernel, *geometry), 2 * (kernel[0] * kernel[1] - sum(last))


@pytest.mark.parametrize(
    ("name", "geometry", "dtype"),
    [
        ("DCNv3", DCNV3[0], torch.float64),
        ("DCNv3", DCNV3[1], torch.float64),
        ("detrex._C", DCNV3[2], torch.float16),
    ],
)
def test_dcnv3(provide, package, name, geometry, dtype):
    package("detrex.config")
    provide(name)
    compiled = importlib.import_module(name)
    height, width, taps = dcnv3_sizes(*geometry)
    *sides, last = geometry
    flat = [number for side in sides for number in side]
    compare(
        lambda i, o, m: compiled.dcnv3_forward(i, o, m, *flat, 2, 4, 1.5, 256, *last),
        lambda i, o, m: reference.dcnv3(i, o, m, *sides, 2, 4, 1.5, bool(sum(last))),
        *(random(3, 9, 7, 8), random(3, height, width, taps * 2), random(3, height, width, taps)),
        dtype=dtype,
        backward=lambda g, *t: compiled.dcnv3_backward(*t, *flat, 2, 4, 1.5, g, 256, *last),
    )


@pytest.mark.parametrize("first", ["DCNv3", "pkg_resources"])
def test_dcnv3_has_a_version(provide, first):
    """``ops_dcnv3`` reads the version to decide whether to pass ``remove_center``."""
    if first == "pkg_resources":
        importlib.import_module(first)
    provide("DCNv3")
    importlib.import_module("DCNv3")
    resources = importlib.import_module("pkg_resources")
    assert float(resources.get_distribution("DCNv3").version) > 1.0
    with patches.disabled("DCNv3_version"), pytest.raises(resources.DistributionNotFound):
        resources.get_distribution("DCNv3")


# DCNv4


@pytest.mark.parametrize(("geometry", "dtype"), zip(DCNV3[1:], (torch.float64, torch.bfloat16), strict=True))
def test_dcnv4(provide, geometry, dtype):
    provide("DCNv4")
    from DCNv4 import ext

    height, width, taps = dcnv3_sizes(*geometry)
    *sides, (remove_center,) = geometry
    flat = [number for side in sides for number in side]
    leaves = (random(3, 9, 7, 8), random(3, height, width, -(-taps * 3 // 8) * 8))
    options, kernel = (*flat, 2, 4, 1.5, 256), (8, 512, False)

    def expected(input, fields):
        return reference.dcnv4(input, fields, *sides, 2, 4, 1.5, bool(remove_center))

    compare(
        lambda *t: ext.dcnv4_forward(*t, *options, remove_center, *kernel),
        expected,
        *leaves,
        dtype=dtype,
        backward=lambda g, *t: ext.dcnv4_backward(*t, *options, g, remove_center, *kernel),
    )


@pytest.mark.parametrize(
    ("layer", "predictor"),
    [
        (DCNv3(32, group=2), "offset"),
        (DCNv4(32, group=2), "offset_mask"),
        (MSDeformAttn(32, 2, 2, 3), "attention_weights"),
    ],
)
def test_official_name_of_reset_parameters(layer, predictor):
    """Deformable DETR and InternImage call it after they have initialised all linear layers."""
    predictor = layer.get_submodule(predictor)
    nn.init.ones_(predictor.weight)
    layer._reset_parameters()
    assert not predictor.weight.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_flash_deform_attn(provide, dtype):
    provide("DCNv4")
    from DCNv4 import ext

    value, locations, weights = attention_leaves()
    fields = torch.cat([locations.flatten(3), weights.flatten(3)], -1)

    def expected(value, fields):
        locations, logits = fields.split([2 * 3 * 2, 2 * 3], -1)
        weights = logits.softmax(-1).unflatten(-1, (2, 3))
        return attention(value, locations.unflatten(-1, (2, 3, 2)), weights)

    levels, kernel = (SHAPES, STARTS), (2, 3, 8, 64)
    compare(
        lambda v, f: ext.flash_deform_attn_forward(v, *levels, f, *kernel),
        expected,
        *(value, fields),
        dtype=dtype,
        backward=lambda g, v, f: ext.flash_deform_attn_backward(v, *levels, f, g, *kernel),
    )
    with pytest.raises(RuntimeError, match=r"sampling_loc_attn: expected 48 values .*got 18"):
        ext.flash_deform_attn_forward(value, SHAPES, STARTS, fields, 64)


def test_the_package_dcnv4(provide):
    """DCNv4's layers are importable from the package's paths."""
    provide("DCNv4")
    package = importlib.import_module("DCNv4")
    layer = importlib.import_module("DCNv4.modules.dcnv4").DCNv4(channels=32, group=2)
    assert layer(random(2, 20, 32).float(), shape=(4, 5)).shape == (2, 20, 32)
    attention = package.FlashDeformAttn(d_model=32, n_levels=2, n_heads=2, n_points=3)
    points = torch.rand(2, 7, 2, 2)
    output = attention(torch.rand(2, 7, 32), points, torch.rand(2, 46, 32), SHAPES, STARTS)
    assert output.shape == (2, 7, 32)
    assert not package.modules.__path__, "no file of dcnzoo can be found as a submodule"


def test_softmax_of_dcnv4_is_refused(provide):
    provide("DCNv4")
    ext = importlib.import_module("DCNv4.ext")
    options = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256, 0, 8, 512, True)
    with pytest.raises(RuntimeError, match="dcnv4_forward: softmax: expected False"):
        ext.dcnv4_forward(torch.rand(1, 4, 4, 8), torch.rand(1, 4, 4, 56), *options)
