"""mmcv's deformable convolutions: its own code, ``dcnzoo.compat.mmcv`` and the registered layers."""

import collections
import copy
import importlib
import inspect
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import initialize
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import dcnzoo.compat.mmcv as compat
import dcnzoo.ops.reference as reference
from dcnzoo.layers.offsets import accept_legacy_offsets
from dcnzoo.models import DCN, DCNv2
from tests.helpers.modules import assert_same, randomise
from tests.op_cases.deform_conv import make

mmcv_ops = importlib.import_module("mmcv.ops")  # mmcv's Python code on dcnzoo's operators
FUNCTIONS = {
    name: getattr(importlib.import_module(f"mmcv.ops.{module}"), function)
    for name, module, function in (
        ("deform_conv2d", "deform_conv", "DeformConv2dFunction"),
        ("modulated_deform_conv2d", "modulated_deform_conv", "ModulatedDeformConv2dFunction"),
    )
}
LAYERS = ("DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2d", "ModulatedDeformConv2dPack")
PACKS = (compat.DeformConv2dPack, compat.ModulatedDeformConv2dPack, DCN, DCNv2)
GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
ARGUMENTS = (4, 6, (3, 2), *GEOMETRY.values(), 2, 2)
OUT = (5, 9)

of_mmcv_and_dcnzoo = pytest.mark.parametrize("module", [mmcv_ops, compat], ids=["mmcv", "dcnzoo"])
each_pack = pytest.mark.parametrize("pack", PACKS)


def tensors(deform_groups=2, batch=3, dtype=torch.float64):
    """input (batch, 4, 9, 7), offset, mask, weight (6, 2, 3, 2) for 2 groups, bias."""
    groups = dict(groups=2, offset_groups=deform_groups, mask_groups=deform_groups)
    sample = make("mmcv", batch=batch, channels=4, out_channels=6, size=(9, 7), **groups, **GEOMETRY)
    input, weight, offset, mask, bias = sample.to(dtype).leaves().tensors
    return [input, offset, mask, weight, bias]


# Arguments


def arguments_of(function):
    """Names and defaults, without Python's ``self`` and autograd's ``ctx``."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.name not in ("self", "ctx")]


def test_names_and_arguments():
    assert set(compat.__all__) == {*FUNCTIONS, *LAYERS}
    with pytest.raises(ImportError):
        from dcnzoo.compat.mmcv import carafe  # noqa: F401
    for name, function in FUNCTIONS.items():
        assert arguments_of(getattr(compat, name)) == arguments_of(function.forward)
    names = "in_channels out_channels kernel_size stride padding dilation groups deform_groups transposed"
    for name in LAYERS:
        ours, theirs = getattr(compat, name), getattr(mmcv_ops, name)
        expected = arguments_of(getattr(mmcv_ops, name.removesuffix("Pack")))  # mmcv's packs: *args
        assert [name for name, _ in arguments_of(ours)][: len(expected)] == [name for name, _ in expected]
        assert len(arguments_of(ours.forward)) == len(arguments_of(theirs.forward))
        layer, mmcvs = ours(*ARGUMENTS[:2], 3), theirs(*ARGUMENTS[:2], 3)  # the defaults
        for attribute in names.split():
            assert getattr(ours(*ARGUMENTS), attribute) == getattr(theirs(*ARGUMENTS), attribute)
            assert getattr(layer, attribute) == getattr(mmcvs, attribute)
        assert (layer.bias is None) == (getattr(mmcvs, "bias", None) is None)


@pytest.mark.parametrize("layer", [*(getattr(compat, name) for name in LAYERS), DCN, DCNv2])
def test_deformable_groups(layer):
    assert layer(4, 6, 3, deformable_groups=2).deform_groups == 2
    if layer not in (DCN, DCNv2):
        with pytest.raises(TypeError):
            layer(4, 6, 3, deformable_groups=2, deform_groups=2)


def test_bias():
    with pytest.raises(ValueError, match="DeformConv2d: bias: "):
        compat.DeformConv2d(4, 6, 3, bias=True)
    assert list(compat.ModulatedDeformConv2d(4, 6, 3, bias=False).state_dict()) == ["weight"]
    assert not compat.ModulatedDeformConv2d(4, 6, 3).bias.any()


# Functions


@of_mmcv_and_dcnzoo
@pytest.mark.parametrize("deform_groups", [1, 2])
@pytest.mark.parametrize("kind", ["v1", "v2", "v2 with bias"])
def test_functions(module, deform_groups, kind):
    input, offset, mask, weight, bias = tensors(deform_groups)
    mask, bias = mask if kind != "v1" else None, bias if "bias" in kind else None
    geometry = (*GEOMETRY.values(), 2)
    if kind == "v1":
        output = module.deform_conv2d(input, offset, weight, *geometry, deform_groups)
    else:
        output = module.modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry, deform_groups)
    leaves = [t for t in (input, offset, mask, weight, bias) if t is not None]
    assert_same(output, reference.deform_conv(input, weight, offset, mask, bias, *geometry), leaves)


@pytest.mark.parametrize(("im2col_step", "batch"), [(1, 3), (2, 3), (32, 33), (32, 0)])
def test_batches_that_im2col_step_does_not_divide(im2col_step, batch):
    """mmcv rejects them."""
    input, offset, _, weight, _ = tensors(2, batch)
    geometry = (*GEOMETRY.values(), 2)
    expected = reference.deform_conv(input, weight, offset, None, None, *geometry)
    output = compat.deform_conv2d(input, offset, weight, *geometry, 2, False, im2col_step)
    assert_same(output, expected, (input, offset, weight))
    assert DCN(4, 6, 3, im2col_step=im2col_step).double()(input).shape == (batch, 6, 7, 5)


@of_mmcv_and_dcnzoo
def test_type_of_the_offset_decides(module):
    """mmcv computes in the type of ``offset``, under autocast too: float32 offsets keep float32."""
    input, offset, mask, weight, bias = tensors(dtype=torch.float32)
    arguments = (weight, *GEOMETRY.values(), 2, 2)
    exact = module.deform_conv2d(input, offset, *arguments)
    assert module.deform_conv2d(input, offset.bfloat16(), *arguments).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.deform_conv2d(input, offset, *arguments), exact)
        arguments = (mask, weight, bias, *arguments[1:])
        assert module.modulated_deform_conv2d(input, offset.bfloat16(), *arguments).dtype == torch.bfloat16


@of_mmcv_and_dcnzoo
def test_larger_offsets_are_read_as_memory(module):
    """DyHead passes offsets of a finer level; kernels read their memory as if it had the output's size."""
    leaves = tensors()
    leaves[1:3] = (torch.cat([t, t], 2).detach()[:, :, :8].requires_grad_() for t in leaves[1:3])
    input, offset, mask, weight, bias = leaves
    geometry = (*GEOMETRY.values(), 2)
    output = module.modulated_deform_conv2d(*leaves, *geometry, 2)

    def as_read(tensor):
        channels = tensor.shape[1]
        return tensor.flatten(1)[:, : channels * OUT[0] * OUT[1]].view(-1, channels, *OUT)

    expected = reference.deform_conv(input, weight, as_read(offset), as_read(mask), bias, *geometry)
    assert_same(output, expected, leaves)


@pytest.mark.parametrize(
    ("function", "name", "value", "message"),
    [
        (0, "deform_groups", 1, "offset: .*12 channels.* got 24"),
        (0, "offset", (3, 24, 5, 8), r"offset: .*, 5, 9\)"),
        (0, "bias", True, "bias: .*got True"),
        (1, "deform_groups", 1, "offset: .*12 channels.* got 24"),
        # read as memory of a larger map, these would be other taps and groups
        (1, "offset", (3, 25, *OUT), "offset: .*24 channels.* got 25"),
        (1, "mask", (3, 24, *OUT), "mask: .*12 channels.* got 24"),
        (1, "offset", (3, 24, 4, 9), "offset: .*24 × 5 × 9 .*got 24 × 4 × 9"),
        (1, "mask", (3, 12, 5, 8), "mask: .*12 × 5 × 9 .*got 12 × 5 × 8"),
        (1, "input", (4, 9, 7), r"input: .*got shape \(4, 9, 7"),
    ],
)
def test_bad_input(function, name, value, message):
    given = dict(zip(("input", "offset", "mask", "weight", "bias"), tensors(), strict=True))
    given |= dict(**GEOMETRY, groups=2, deform_groups=2)
    if function == 0:
        del given["mask"], given["bias"]
    given[name] = torch.zeros(value, dtype=torch.float64) if isinstance(value, tuple) else value
    with pytest.raises(RuntimeError, match=f"deform_conv2d: {message}"):
        (compat.deform_conv2d, compat.modulated_deform_conv2d)[function](**given)
    if function == 1 and name != "input":  # mmcv's own function takes no keywords
        with pytest.raises(RuntimeError, match=f"deform_conv2d: {message}"):
            mmcv_ops.modulated_deform_conv2d(*given.values())


# Layers


def is_modulated(pack):
    return pack in (compat.ModulatedDeformConv2dPack, DCNv2)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    """The layers have mmcv's keys and versions and, with mmcv's parameters, the reference's output."""
    state = randomise(getattr(mmcv_ops, name)(*ARGUMENTS).double()).state_dict()
    layer = getattr(compat, name)(*ARGUMENTS).double()
    assert list(layer.state_dict()) == list(state)
    assert layer.state_dict()._metadata[""] == state._metadata[""]  # version
    layer.load_state_dict(state)
    input, offset, mask, _, _ = tensors()
    if name.endswith("Pack"):
        inputs = (input,)
        offset, mask = predicted(layer, input)
    else:
        inputs = (input, offset, mask)[: 3 if name.startswith("Mod") else 2]
        mask = (*inputs, None)[2]
    geometry = (*GEOMETRY.values(), 2)
    expected = reference.deform_conv(input, state["weight"], offset, mask, state.get("bias"), *geometry)
    torch.testing.assert_close(layer(*inputs), expected, atol=1e-10, rtol=1e-10)
    for copied in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(copied(*inputs), layer(*inputs))
    if name.startswith("Mod"):
        layer.init_weights()
        assert (
            layer.weight.abs().max()
            <= 1 / math.sqrt(layer.weight[0].numel())
            < max(map(torch.max, state.values()))
        )


def predicted(pack, input):
    """Offset and mask of a pack, as in mmcv's documentation."""
    geometry = (pack.stride, pack.padding, pack.dilation)
    output = F.conv2d(input, pack.conv_offset.weight, pack.conv_offset.bias, *geometry)
    taps = output.shape[1] * 2 // 3
    return (output[:, :taps], output[:, taps:].sigmoid()) if taps == 24 else (output, None)


@pytest.mark.parametrize(("pack", "bias"), [(DCN, True), (DCNv2, False)])
def test_registered_packs(pack, bias):
    """The packs accept an offset limit, and a bias where mmcv has none by default."""
    layer = randomise(pack(*ARGUMENTS, bias=bias, im2col_step=2, offset_limit=0.5)).double()
    assert (layer.bias is not None) == bias
    input = tensors()[0]
    offset, mask = predicted(layer, input)
    offset = (offset / 0.5).tanh() * 0.5
    expected = reference.deform_conv(input, layer.weight, offset, mask, layer.bias, *GEOMETRY.values(), 2)
    torch.testing.assert_close(layer(input), expected, atol=1e-10, rtol=1e-10)


@each_pack
def test_packs_begin_as_convolutions(pack):
    """Also after a parent module's initialisation."""
    layer = pack(4, 6, 3, padding=1, deform_groups=2)
    model, input = nn.Sequential(layer, nn.Conv2d(6, 6, 1)), torch.randn(2, 4, 7, 5)
    scale = 0.5 if is_modulated(pack) else 1.0  # the mask is sigmoid(0)
    bound = 1 / math.sqrt(36) if scale < 1 else math.sqrt(6 / 36)  # mmcv's initialisations
    assert 0.8 * bound < layer.weight.abs().max() <= bound
    for initialiser in (None, "Kaiming", "TruncNormal"):
        if initialiser:
            initialize(model, dict(type=initialiser, layer="Conv2d", bias=0.5))
            assert (model[1].bias == 0.5).all()
        expected = F.conv2d(input, scale * layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(input), expected, atol=1e-5, rtol=1e-5)
    randomise(layer)
    layer.init_weights() if scale < 1 else layer.init_offset()
    assert not any(p.any() for p in layer.conv_offset.parameters())


class Block(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.conv2 = pack


@each_pack
@pytest.mark.parametrize("loader", ["torch", "mmengine"])
def test_old_names_load(pack, loader):
    """Before version 2, the offset convolution was a sibling of the layer: ``conv2_offset.weight``."""
    model = randomise(nn.Sequential(Block(pack(4, 6, 3)), nn.Conv2d(6, 6, 1)))
    expected = copy.deepcopy(model.state_dict())
    old = {key.replace("conv2.conv_offset", "conv2_offset"): value for key, value in expected.items()}
    assert "0.conv2_offset.weight" in old
    accept_legacy_offsets(model)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(other[0].conv2.conv_offset.weight)
        if loader == "torch":
            other.load_state_dict(old)
        else:
            load_state_dict(other, collections.OrderedDict(old), strict=True)
        torch.testing.assert_close(dict(other.state_dict()), dict(expected), rtol=0, atol=0)


def test_other_keys_stay():
    """A user's network may have a ``conv2_offset`` beside a layer that is not a pack."""
    block = Block(compat.DeformConv2d(4, 6, 3))
    block.conv2_offset = nn.Conv2d(4, 18, 3)
    accept_legacy_offsets(block)
    block.load_state_dict(randomise(copy.deepcopy(block)).state_dict())
