"""``dcnzoo.compat.mmcv``'s functions and layers: mmcv's arguments, results, parameters; no mmcv needed."""

import collections
import copy
import importlib
import inspect
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcnzoo.compat.mmcv as compat
import dcnzoo.ops.reference as reference

from .modules import randomise

mmcv_ops = importlib.import_module("mmcv.ops")  # its Python code, on dcnzoo's operators
FUNCTIONS = {
    name: getattr(importlib.import_module(f"mmcv.ops.{module}"), function)
    for name, module, function in (
        ("deform_conv2d", "deform_conv", "DeformConv2dFunction"),
        ("modulated_deform_conv2d", "modulated_deform_conv", "ModulatedDeformConv2dFunction"),
    )
}
LAYERS = ("DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2d", "ModulatedDeformConv2dPack")
PACKS = ("DeformConv2dPack", "ModulatedDeformConv2dPack")
GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
OUT = (5, 9)


def tensors(deform_groups=2, batch=3, dtype=torch.float64):
    """input (3, 4, 9, 7), offset, mask, weight (6, 2, 3, 2) of 2 groups, bias."""
    torch.manual_seed(0)
    return (
        torch.randn(batch, 4, 9, 7, dtype=dtype),
        torch.randn(batch, deform_groups * 12, *OUT, dtype=dtype) * 2,
        torch.rand(batch, deform_groups * 6, *OUT, dtype=dtype),
        torch.randn(6, 2, 3, 2, dtype=dtype),
        torch.randn(6, dtype=dtype),
    )


def arguments_of(function):
    """Names and defaults, without what Python or autograd puts before them."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.name not in ("self", "ctx")]


# Arguments


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_of_functions(name):
    assert arguments_of(getattr(compat, name)) == arguments_of(FUNCTIONS[name].forward)


@pytest.mark.parametrize("name", LAYERS)
def test_arguments_of_layers(name):
    ours, theirs = getattr(compat, name), getattr(mmcv_ops, name.removesuffix("Pack"))  # packs: *args
    assert arguments_of(ours) == arguments_of(theirs)
    assert arguments_of(ours.forward) == arguments_of(getattr(mmcv_ops, name).forward)


@pytest.mark.parametrize("name", LAYERS)
def test_deformable_groups(name):
    layer = getattr(compat, name)
    with pytest.warns(DeprecationWarning, match=f"{name}: deformable_groups"):
        assert layer(4, 6, 3, deformable_groups=2).deform_groups == 2
    with pytest.raises(TypeError):
        layer(4, 6, 3, deformable_groups=2, deform_groups=2)


@pytest.mark.parametrize("name", LAYERS)
def test_attributes(name):
    layers = [getattr(module, name)(4, 6, (3, 2), 2, (1, 2), 1, 2, 2) for module in (compat, mmcv_ops)]
    names = "in_channels out_channels kernel_size stride padding dilation groups deform_groups transposed"
    for attribute in names.split() + ["im2col_step"] * name.startswith("Deform"):
        assert getattr(layers[0], attribute) == getattr(layers[1], attribute)


def test_names_are_imported_when_asked_for():
    assert set(compat.__all__) == {*FUNCTIONS, *LAYERS}
    with pytest.raises(AttributeError, match="carafe"):
        _ = compat.carafe
    with pytest.raises(ImportError):
        from dcnzoo.compat.mmcv import carafe  # noqa: F401


# Functions


def assert_same(output, expected, leaves):
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    gradients = (torch.autograd.grad(o.square().sum(), leaves) for o in (output, expected))
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("deform_groups", [1, 2])
@pytest.mark.parametrize(("im2col_step", "batch"), [(1, 3), (2, 3), (32, 33)])
def test_deform_conv2d(deform_groups, im2col_step, batch):
    """Also batches that ``im2col_step`` does not divide, which mmcv refuses."""
    input, offset, _, weight, _ = (t.requires_grad_() for t in tensors(deform_groups, batch))
    geometry = tuple(GEOMETRY.values())
    output = compat.deform_conv2d(input, offset, weight, *geometry, 2, deform_groups, False, im2col_step)
    expected = reference.deform_conv(input, weight, offset, None, None, *geometry, 2)
    assert_same(output, expected, (input, offset, weight))


@pytest.mark.parametrize("deform_groups", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv2d(deform_groups, with_bias):
    input, offset, mask, weight, bias = leaves = [t.requires_grad_() for t in tensors(deform_groups)]
    bias = bias if with_bias else None
    geometry = tuple(GEOMETRY.values())
    output = compat.modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry, 2, deform_groups)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *geometry, 2)
    assert_same(output, expected, leaves if with_bias else leaves[:4])


def test_type_of_the_offset_decides():
    """mmcv computes in the type of ``offset``, and so under autocast: float32 offsets keep it float32."""
    input, offset, mask, weight, bias = tensors(dtype=torch.float32)
    arguments = (weight, *GEOMETRY.values(), 2, 2)
    exact = compat.deform_conv2d(input, offset, *arguments)
    half = compat.deform_conv2d(input, offset.bfloat16(), *arguments)
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compat.deform_conv2d(input, offset, *arguments), exact)
        arguments = (mask, weight, bias, *arguments[1:])
        modulated = compat.modulated_deform_conv2d(input, offset.bfloat16(), *arguments)
        assert modulated.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"deform_groups": 1}, "offset: .*12 channels.* got 24"),
        ({"offset": (3, 24, 45)}, r"offset: .*got shape \(3, 24, 45\)"),
        ({"offset": (3, 24, 5, 8)}, r"offset: .*\(5, 9\)"),
        ({"weight": (6, 2, 3)}, r"weight: .*got shape \(6, 2, 3\)"),
        ({"input": (4, 9, 7)}, "input: "),
        ({"bias": True}, "bias: .*got True"),
        ({"stride": 0}, "stride: "),
        ({"im2col_step": 0}, "im2col_step: "),
    ],
)
def test_bad_input(changed, message):
    input, offset, _, weight, _ = tensors()
    given = dict(input=input, offset=offset, weight=weight, groups=2, deform_groups=2, **GEOMETRY)
    for name, value in changed.items():
        given[name] = torch.zeros(value, dtype=torch.float64) if isinstance(value, tuple) else value
    with pytest.raises(RuntimeError, match=f"^deform_conv2d: {message}"):
        compat.deform_conv2d(**given)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("deform_groups", 1, "offset: .*12 channels.* got 24"),
        ("mask", (3, 24, *OUT), "mask: .*12 channels.* got 24"),
        ("offset", (3, 24, 4, 9), "offset: .*24 × 5 × 9 .*got 24 × 4 × 9"),
        ("mask", (3, 12, 5, 8), "mask: .*12 × 5 × 9 .*got 12 × 5 × 8"),
        ("stride", [1, 0], "stride: "),
        ("bias", torch.zeros(5, dtype=torch.float64), r"bias: .*got \(5,\)"),
        ("padding", [1], "padding: "),
        ("input", (4, 9, 7), r"input: .*got shape \(4, 9, 7"),
    ],
)
def test_bad_modulated_input(name, value, message):
    given = dict(zip(("input", "offset", "mask", "weight", "bias"), tensors(), strict=True))
    given |= dict(groups=2, deform_groups=2, **GEOMETRY)
    given[name] = torch.zeros(value, dtype=torch.float64) if isinstance(value, tuple) else value
    with pytest.raises(RuntimeError, match=f"deform_conv2d: {message}"):
        compat.modulated_deform_conv2d(**given)


# Layers


def predicted(pack, input):
    """Offset and mask of a pack, as mmcv's documentation has them."""
    geometry = (pack.stride, pack.padding, pack.dilation)
    output = F.conv2d(input, pack.conv_offset.weight, pack.conv_offset.bias, *geometry)
    taps = output.shape[1] * 2 // 3
    return (output[:, :taps], output[:, taps:].sigmoid()) if taps == 24 else (output, None)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    """mmcv's keys, their versions, and from its parameters the reference's output."""
    arguments = (4, 6, (3, 2), *GEOMETRY.values(), 2, 2)
    state = randomise(getattr(mmcv_ops, name)(*arguments).double()).state_dict()
    layer = getattr(compat, name)(*arguments).double()
    assert list(layer.state_dict()) == list(state)
    assert layer.state_dict()._metadata == state._metadata  # versions
    layer.load_state_dict(state)
    input, offset, mask, _, _ = tensors()
    inputs = (input,) if name in PACKS else (input, offset, mask)[: 3 if name.startswith("Mod") else 2]
    offset, mask = predicted(layer, input) if name in PACKS else (*inputs[1:], None)[:2]
    weight, bias = state["weight"], state.get("bias")
    expected = reference.deform_conv(input, weight, offset, mask, bias, *GEOMETRY.values(), 2)
    torch.testing.assert_close(layer(*inputs), expected, atol=1e-10, rtol=1e-10)
    for copied in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(copied(*inputs), layer(*inputs))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 6), (6, 2)])
@pytest.mark.parametrize("geometry", [(1, 1, 1), ((2, 1), (1, 2), 1), (1, 2, 2)])
def test_input_smaller_than_the_kernel(size, geometry):
    """mmcv pads the input to the kernel's size, and the offset alike, and crops the output."""
    layer = randomise(compat.DeformConv2d(4, 6, 3, *geometry, deform_groups=2).double())
    stride, padding, dilation = (layer.stride, layer.padding, layer.dilation)
    axes = list(zip(size, stride, padding, dilation, strict=True))
    out = [(n + 2 * p - d * 2 - 1) // s + 1 for n, s, p, d in axes]
    grown = [(max(n, 3) + 2 * p - d * 2 - 1) // s + 1 for n, s, p, d in axes]
    input = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    offset = (torch.randn(2, 36, *out, dtype=torch.float64) * 2).requires_grad_()
    padded = reference.deform_conv(
        F.pad(input, (0, max(3 - size[1], 0), 0, max(3 - size[0], 0))),
        layer.weight,
        F.pad(offset, (0, grown[1] - out[1], 0, grown[0] - out[0])),
        *(None, None, stride, padding, dilation, 1),
    )
    assert_same(layer(input, offset), padded[:, :, : out[0], : out[1]], (input, offset))


@pytest.mark.parametrize("name", PACKS)
def test_packs_begin_as_convolutions(name):
    torch.manual_seed(0)
    pack = getattr(compat, name)(4, 6, 3, padding=1, deform_groups=2)
    input = torch.randn(2, 4, 7, 5)
    scale = 0.5 if name.startswith("Modulated") else 1.0  # the mask is sigmoid(0)
    expected = scale * F.conv2d(input, pack.weight, padding=1)
    torch.testing.assert_close(pack(input), expected, atol=1e-5, rtol=1e-5)
    bound = 1 / math.sqrt(36) if scale < 1 else math.sqrt(6 / 36)  # mmcv's initialisations
    assert 0.9 * bound < pack.weight.abs().max() <= bound
    randomise(pack)
    pack.init_weights() if scale < 1 else pack.init_offset()
    assert not any(p.any() for p in pack.conv_offset.parameters())


@pytest.mark.parametrize("name", PACKS)
def test_offsets_survive_the_parents_initialisation(name):
    from mmengine.model import initialize

    model = nn.Sequential(getattr(compat, name)(4, 6, 3), nn.Conv2d(6, 6, 1))
    initialize(model, dict(type="Kaiming", layer="Conv2d"))
    assert not any(p.any() for p in model[0].conv_offset.parameters())


class Block(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.conv2 = pack


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("loader", ["torch", "mmengine"])
def test_old_names_load(name, loader):
    model = randomise(nn.Sequential(Block(getattr(compat, name)(4, 6, 3)), nn.Conv2d(6, 6, 1)))
    expected = copy.deepcopy(model.state_dict())
    old = {key.replace("conv2.conv_offset", "conv2_offset"): value for key, value in expected.items()}
    assert "0.conv2_offset.weight" in old
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(other[0].conv2.conv_offset.weight)
        if loader == "torch":
            other.load_state_dict(old)
        else:
            checkpoint = importlib.import_module("mmengine.runner.checkpoint")
            checkpoint.load_state_dict(other, collections.OrderedDict(old), strict=True)
        torch.testing.assert_close(dict(other.state_dict()), dict(expected), rtol=0, atol=0)


def test_other_keys_stay():
    """A network of one's own may have a ``conv2_offset`` beside a layer that is no pack."""
    block = Block(compat.DeformConv2d(4, 6, 3))
    block.conv2_offset = nn.Conv2d(4, 18, 3)
    assert not Block(nn.Conv2d(4, 6, 3))._load_state_dict_pre_hooks
    block.load_state_dict(randomise(copy.deepcopy(block)).state_dict())


@pytest.mark.parametrize("name", PACKS)
def test_compiled_and_empty(name):
    pack = randomise(getattr(compat, name)(4, 6, (3, 2), **GEOMETRY, groups=2, deform_groups=2))
    input = tensors(dtype=torch.float32)[0]
    compiled = torch.compile(pack, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(input), pack(input))
    output = pack(input[:0])
    assert output.shape == (0, 6, *OUT)
    output.sum().backward()
    assert not pack.weight.grad.any()


@pytest.mark.parametrize("name", PACKS)
def test_packs_under_autocast(name):
    """The prediction is half, and what it is given to becomes so, as in mmcv."""
    pack = randomise(getattr(compat, name)(4, 6, (3, 2), *GEOMETRY.values(), 2, 2))
    input = tensors(dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output = pack(input)
    assert output.dtype == torch.bfloat16
    expected = pack(input)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_bias():
    for name in LAYERS[:2]:
        with pytest.raises(ValueError, match=f"{name}: bias: "):
            getattr(compat, name)(4, 6, 3, bias=True)
    assert list(compat.ModulatedDeformConv2d(4, 6, 3, bias=False).state_dict()) == ["weight"]
    assert not compat.ModulatedDeformConv2d(4, 6, 3).bias.any()
