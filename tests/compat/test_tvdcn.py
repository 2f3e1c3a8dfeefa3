"""``dcnzoo.compat.tvdcn``: tvdcn's names, the arguments and the state dicts of its packed layers.

layers/test_programs.py tests that its layers script.
"""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.compat.tvdcn as tvdcn
import dcnzoo.ops
from dcnzoo import layers
from dcnzoo.ops import reference
from tests.helpers.modules import randomise

KERNEL = {1: (3,), 2: (3, 2), 3: (3, 1, 2)}
GEOMETRY = {"stride": (2, 1, 1), "padding": (1, 2, 1), "dilation": (1, 2, 1)}
SIZE = (7, 6, 5)
PACKED = (
    "in_channels out_channels kernel_size stride padding dilation groups offset_groups mask_groups bias "
    "generator_bias deformable modulated offset_activation mask_activation padding_mode device dtype"
)
packs = pytest.mark.parametrize(
    ("rank", "transposed"), [(rank, transposed) for rank in (1, 2, 3) for transposed in (False, True)]
)


def pack_of(rank, transposed):
    return getattr(tvdcn, f"PackedDeformConv{'Transpose' * transposed}{rank}d")


def test_names():
    """Functions and plain layers are dcnzoo's own."""
    assert tvdcn.has_ops() and tvdcn.with_cuda() in (False, True)
    for name in tvdcn.ops.__all__:
        assert getattr(tvdcn, name) is getattr(tvdcn.ops, name) and name in tvdcn.__all__
        if not name.startswith("Packed"):
            assert getattr(tvdcn, name) is getattr(layers if name[0] == "D" else dcnzoo.ops, name)
    assert len(tvdcn.ops.__all__) == 21


@packs
def test_arguments_of_packs(rank, transposed):
    """The arguments are tvdcn's, in the same order, and each one takes effect."""
    names = PACKED.replace(" dilation", " dilation output_padding") if transposed else PACKED
    given = list(inspect.signature(pack_of(rank, transposed)).parameters)
    assert given == names.split()
    sizes = (4, 6, KERNEL[rank], 2, 1, 1, *((1,) if transposed else ()))
    # groups, offset_groups, mask_groups, bias, generator_bias, deformable, modulated, activations, …
    options = (2, 1, 2, False, True, False, True, None, None, "zeros", "cpu", torch.float64)
    module = pack_of(rank, transposed)(*sizes, *options)
    assert (module.groups, module.offset_groups, module.mask_groups, module.bias) == (2, 1, 2, None)
    assert (module.offset_activation, module.mask_activation) == (None, None)
    assert module.conv_offset.out_channels == 2 * math.prod(module.kernel_size)  # masks alone
    assert module.conv_offset.bias.dtype == torch.float64
    torch.jit.script(module)


@packs
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_state_dicts_of_tvdcn(rank, transposed, activation):
    """tvdcn's two generators are convolutions with ``offset_groups`` and ``mask_groups`` groups."""
    kernel, taps = KERNEL[rank], math.prod(KERNEL[rank])
    options = {name: values[:rank] for name, values in GEOMETRY.items()}
    given = dict(options, groups=2, offset_groups=2, modulated=True, dtype=torch.float64)
    pack = pack_of(rank, transposed)(4, 6, kernel, **given, mask_activation=activation)
    point = (1,) * rank if transposed else kernel
    state = randomise(pack).state_dict()
    shapes = {
        "offset_generator.weight": (2 * taps * rank, 2, *point),
        "mask_generator.weight": (taps, 4, *point),
    }
    generators = {name: torch.randn(shape, dtype=torch.float64) / 3 for name, shape in shapes.items()}
    pack.load_state_dict({"weight": state["weight"], "bias": state["bias"], **generators})
    input = torch.randn(2, 4, *SIZE[:rank], dtype=torch.float64)
    convolve = getattr(F, f"conv{rank}d")
    where = {} if transposed else options
    offset = convolve(input, generators["offset_generator.weight"], **where, groups=2)
    mask = convolve(input, generators["mask_generator.weight"], **where)
    mask = mask.softmax(1) if activation == "softmax" else 2 * mask.sigmoid()
    lists = [options["stride"], options["padding"], options["dilation"]]
    if transposed:
        lists.insert(2, (0,) * rank)
    function = reference.deform_conv_transpose if transposed else reference.deform_conv
    expected = function(input, pack.weight, offset, mask, pack.bias, *lists, 2)
    torch.testing.assert_close(pack(input), expected)


def test_initial_values_and_errors():
    with pytest.raises(ValueError, match=r"PackedDeformConv2d: mask_activation: .*'tanh'"):
        tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True, mask_activation="tanh")
    for arguments, twice in (((4, 6, 3, *[1] * 16), {}), ((4, 6, 3), {"kernel_size": 3})):
        with pytest.raises(TypeError, match=r"arguments|multiple values"):
            tvdcn.PackedDeformConv2d(*arguments, **twice)
    biased = tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True, generator_bias=True)
    assert "conv_offset.bias" in biased.state_dict()
    pack = tvdcn.PackedDeformConv2d(4, 6, (3, 2), modulated=True, bias=False)
    assert list(pack.state_dict()) == ["weight", "conv_offset.weight", "mask_activation.scale"]
    # tvdcn's 'sigmoid' is 2 · sigmoid, so that a new pack is an ordinary convolution
    input = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(pack(input), torch.nn.functional.conv2d(input, pack.weight))
    offset, mask = torch.randn(12, 4, 3, 2), torch.randn(6, 4, 3, 2)
    for names in (("offset_generator", "mask_generator"), ("conv_offset", "conv_mask")):
        state = {"weight": pack.weight, f"{names[0]}.weight": offset, f"{names[1]}.weight": mask}
        state["mask_activation.scale"] = torch.tensor(2.0)
        before = list(state)
        pack.load_state_dict(state)
        torch.testing.assert_close(pack.conv_offset.weight, torch.cat([offset, mask]))
        assert list(state) == before, "the caller's is left alone"
