"""``dcnzoo.compat.tvdcn``: tvdcn's names, the examples of its README, and recorded results of tvdcn.

test_layer_programs.py tests that its layers script.
"""

import inspect
import math

import pytest
import torch

import dcnzoo.compat.tvdcn as tvdcn

from . import recorded_tvdcn as recorded

RANKS = ("1d", "2d", "3d")
FUNCTION = "input weight offset mask bias stride padding dilation groups"
PLAIN = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode device dtype"
PACKED = (
    "in_channels out_channels kernel_size stride padding dilation groups offset_groups mask_groups bias "
    "generator_bias deformable modulated offset_activation mask_activation padding_mode device dtype"
)


def transposed(names):
    """output_padding comes before dilation in functions and after it in layers."""
    if names is FUNCTION:
        return names.replace(" dilation", " output_padding dilation")
    return names.replace(" dilation", " dilation output_padding")


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
    """tvdcn's arguments in order, then dcnzoo's additional im2col_step."""
    found = getattr(tvdcn, name + rank)
    assert getattr(tvdcn.ops, name + rank) is found and name + rank in tvdcn.__all__
    given = list(inspect.signature(found).parameters)
    assert given in (names.split(), [*names.split(), "im2col_step"])


def test_options_and_initial_values_of_packs():
    assert tvdcn.has_ops() and tvdcn.with_cuda() in (False, True)
    for rank, transposed in recorded.CASES:
        pack = getattr(tvdcn, f"PackedDeformConv{'Transpose' * transposed}{rank}d")
        sizes = (4, 6, recorded.KERNEL[rank], 2, 1, 1, *((1,) if transposed else ()))
        # groups, offset_groups, mask_groups, bias, generator_bias, deformable, modulated, activations, …
        module = pack(*sizes, 2, 1, 2, False, True, False, True, None, None, "zeros", "cpu", torch.float64)
        assert (module.groups, module.offset_groups, module.mask_groups, module.bias) == (2, 1, 2, None)
        assert (module.offset_activation, module.mask_activation) == (None, None)
        assert module.conv_offset.out_channels == 2 * math.prod(module.kernel_size)  # masks alone
        assert module.conv_offset.bias.dtype == torch.float64
        torch.jit.script(module)
    with pytest.raises(ValueError, match=r"PackedDeformConv2d: mask_activation: .*'tanh'"):
        tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True, mask_activation="tanh")
    for arguments, twice in (((4, 6, 3, *[1] * 16), {}), ((4, 6, 3), {"kernel_size": 3})):
        with pytest.raises(TypeError, match=r"arguments|multiple values"):
            tvdcn.PackedDeformConv2d(*arguments, **twice)
    biased = tvdcn.PackedDeformConv2d(4, 6, 3, modulated=True, generator_bias=True)
    assert "conv_offset.bias" in biased.state_dict()
    pack = tvdcn.PackedDeformConv2d(4, 6, (3, 2), modulated=True, bias=False)
    assert list(pack.state_dict()) == ["weight", "conv_offset.weight"]
    # tvdcn's 'sigmoid' is 2 · sigmoid, so that a new pack is an ordinary convolution
    input = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(pack(input), torch.nn.functional.conv2d(input, pack.weight))
    offset, mask = torch.randn(12, 4, 3, 2), torch.randn(6, 4, 3, 2)
    for names in (("offset_generator", "mask_generator"), ("conv_offset", "conv_mask")):
        state = {"weight": pack.weight, f"{names[0]}.weight": offset, f"{names[1]}.weight": mask}
        before = list(state)
        pack.load_state_dict(state)
        torch.testing.assert_close(pack.conv_offset.weight, torch.cat([offset, mask]))
        assert list(state) == before, "the caller's is left alone"


# Recorded results of tvdcn 1.1.0


@pytest.mark.parametrize("case", recorded.CASES)
def test_equals_tvdcn(case):
    """Packs load a state dict with ``offset_generator`` and weights in groups."""
    rank, _ = case
    figures = [*recorded.function_figures(tvdcn, *case), *recorded.pack_figures(tvdcn, *case)]
    figures.append(recorded.softmax_figure(tvdcn, rank))
    expected = [*recorded.FUNCTIONS[case], *recorded.PACKS[case], recorded.SOFTMAX[rank]]
    assert figures == pytest.approx(expected, rel=1e-8, abs=1e-8)  # ten digits are recorded
