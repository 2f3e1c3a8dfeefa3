"""``dcnzoo.compat.tvdcn``: tvdcn's names, the examples of its README, and what tvdcn itself computed."""

import inspect
import io

import pytest
import torch

import dcnzoo.compat.tvdcn as tvdcn
from dcnzoo import layers

from . import recorded_tvdcn as recorded

RANKS = ("1d", "2d", "3d")
FUNCTION = "input weight offset mask bias stride padding dilation groups"
PLAIN = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode device dtype"
PACKED = (
    "in_channels out_channels kernel_size stride padding dilation groups offset_groups mask_groups bias "
    "generator_bias deformable modulated offset_activation mask_activation padding_mode device dtype"
)


def transposed(names):
    """In the functions output_padding comes before dilation, in the layers after it."""
    if names is FUNCTION:
        return names.replace(" dilation", " output_padding dilation")
    return names.replace(" dilation", " dilation output_padding")


def test_installation():
    assert tvdcn.has_ops() and tvdcn.with_cuda() in (False, True)


# Its names and arguments


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("deform_conv", FUNCTION),
        ("deform_conv_transpose", transposed(FUNCTION)),
        ("mask_softmax", "mask kernel_size"),
        ("DeformConv", PLAIN),
        ("DeformConvTranspose", transposed(PLAIN)),
        ("PackedDeformConv", PACKED),
        ("PackedDeformConvTranspose", transposed(PACKED)),
    ],
)
def test_names_and_arguments(name, names, rank):
    """In tvdcn's order; what dcnzoo adds, im2col_step, comes after."""
    found = getattr(tvdcn, name + rank)
    assert getattr(tvdcn.ops, name + rank) is found and name + rank in tvdcn.__all__
    given = list(inspect.signature(found).parameters)
    assert given in (names.split(), [*names.split(), "im2col_step"])


@pytest.mark.parametrize("case", recorded.CASES)
def test_options_of_packs_by_position(case):
    rank, transposed = case
    pack = getattr(tvdcn, f"PackedDeformConv{'Transpose' * transposed}{rank}d")
    sizes = (4, 6, recorded.KERNEL[rank], 2, 1, 1, *((1,) if transposed else ()))
    # groups, offset_groups, mask_groups, bias, generator_bias, deformable, modulated, activations, …
    module = pack(*sizes, 2, 1, 2, False, True, False, True, None, None, "zeros", "cpu", torch.float64)
    assert (module.groups, module.offset_groups, module.mask_groups, module.bias) == (2, 1, 2, None)
    assert (module.conv_offset, module.offset_activation, module.mask_activation) == (None, None, None)
    assert module.conv_mask.bias.dtype == torch.float64


def test_generator_bias():
    names = ["weight", "bias", "conv_offset.weight", "conv_mask.weight"]
    assert list(tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True).state_dict()) == names
    biased = tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True, generator_bias=True)
    assert {"conv_offset.bias", "conv_mask.bias"} <= set(biased.state_dict())


def test_sigmoid_begins_at_one():
    """tvdcn's ``'sigmoid'`` is 2 · sigmoid, so that a new pack is an ordinary convolution."""
    torch.manual_seed(0)
    input = torch.randn(2, 4, 7, 6)
    pack = tvdcn.PackedDeformConv2d(4, 6, (3, 2), modulated=True, bias=False)
    torch.testing.assert_close(pack(input), torch.nn.functional.conv2d(input, pack.weight))


def test_bad_activation():
    with pytest.raises(ValueError, match=r"PackedDeformConv2d: mask_activation: .*'tanh'"):
        tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True, mask_activation="tanh")


@pytest.mark.parametrize("case", recorded.CASES)
def test_scripted_pack_is_saved_and_loaded(case):
    rank, transposed = case
    pack = getattr(tvdcn, f"PackedDeformConv{'Transpose' * transposed}{rank}d")
    module = pack(4, 6, recorded.KERNEL[rank], modulated=True, **recorded.geometry(*case))
    assert isinstance(module, getattr(layers, type(module).__name__))
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    input = torch.randn(2, 4, *recorded.SIZE[rank])
    assert torch.equal(torch.jit.load(io.BytesIO(file.getvalue()))(input), module(input))


# What tvdcn 1.1.0 computed


def approx(figures):
    return pytest.approx(figures, rel=1e-8, abs=1e-8)  # ten digits are recorded


@pytest.mark.parametrize("case", recorded.CASES)
def test_equals_tvdcn(case):
    assert recorded.function_figures(tvdcn, *case) == approx(recorded.FUNCTIONS[case])


@pytest.mark.parametrize("case", recorded.CASES)
def test_packs_equal_tvdcn(case):
    """With a state dict that says ``offset_generator`` and has its weights in groups."""
    assert recorded.pack_figures(tvdcn, *case) == approx(recorded.PACKS[case])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_softmax_equals_tvdcn(rank):
    assert recorded.softmax_figure(tvdcn, rank) == approx(recorded.SOFTMAX[rank])
