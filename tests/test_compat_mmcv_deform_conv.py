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


def randomize(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


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
    with pytest.warns(DeprecationWarning, match=f"{name}: deformable_groups is deprecated.*deform_groups"):
        assert layer(4, 6, 3, deformable_groups=2).deform_groups == 2
    with pytest.raises(TypeError, match="got both"):
        layer(4, 6, 3, deformable_groups=2, deform_groups=2)


@pytest.mark.parametrize("name", LAYERS)
def test_attributes(name):
    layers = [getattr(module, name)(4, 6, (3, 2), 2, (1, 2), 1, 2, 2) for module in (compat, mmcv_ops)]
    names = "in_channels out_channels kernel_size stride padding dilation groups deform_groups transposed"
    for attribute in names.split() + ["im2col_step"] * name.startswith("Deform"):
        assert getattr(layers[0], attribute) == getattr(layers[1], attribute)


def test_names_are_imported_when_asked_for():
    assert set(compat.__all__) == {*FUNCTIONS, *LAYERS}
    assert all(hasattr(compat, name) for name in compat.__all__)
    with pytest.raises(AttributeError, match=r"'dcnzoo\.compat\.mmcv' has no attribute 'carafe'"):
        _ = compat.carafe
    with pytest.raises(ImportError):
        from dcnzoo.compat.mmcv import carafe  # noqa: F401


# Functions


@pytest.mark.parametrize("deform_groups", [1, 2])
@pytest.mark.parametrize("im2col_step", [1, 2, 32])
def test_deform_conv2d(deform_groups, im2col_step):
    """A batch of 3 goes with an im2col_step of 2."""
    input, offset, _, weight, _ = (t.requires_grad_() for t in tensors(deform_groups))
    geometry = tuple(GEOMETRY.values())
    output = compat.deform_conv2d(input, offset, weight, *geometry, 2, deform_groups, False, im2col_step)
    expected = reference.deform_conv(input, weight, offset, None, None, *geometry, 2)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    leaves = (input, offset, weight)
    got, want = (torch.autograd.grad(o.square().sum(), leaves) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("deform_groups", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv2d(deform_groups, with_bias):
    leaves = [t.requires_grad_() for t in tensors(deform_groups)]
    input, offset, mask, weight, bias = leaves
    bias = bias if with_bias else None
    geometry = tuple(GEOMETRY.values())
    output = compat.modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry, 2, deform_groups)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *geometry, 2)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    leaves = leaves if with_bias else leaves[:4]
    got, want = (torch.autograd.grad(o.square().sum(), leaves) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)


def test_batch_of_33():
    """Past mmcv's default ``im2col_step`` of 32, which mmcv refuses."""
    torch.manual_seed(0)
    input, weight = torch.randn(33, 2, 4, 5), torch.randn(3, 2, 3, 3)
    offset = torch.randn(33, 18, 2, 3)
    expected = reference.deform_conv(input, weight, offset, None, None, (1, 1), (0, 0), (1, 1), 1)
    torch.testing.assert_close(compat.deform_conv2d(input, offset, weight), expected, atol=1e-5, rtol=1e-5)


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


def test_larger_offsets_are_read_as_memory():
    """As DyHead counts on; what lies where is tested in test_compat_mmcv.py."""
    torch.manual_seed(0)
    leaves = [torch.randn(2, 4, 6, 5), torch.randn(2, 36, 9, 8) * 2, torch.rand(2, 18, 9, 8)]
    leaves = [t.requires_grad_() for t in (*leaves, torch.randn(6, 4, 3, 3), torch.randn(6))]
    results = []
    for function in (compat.modulated_deform_conv2d, mmcv_ops.modulated_deform_conv2d):
        output = function(*leaves, 1, 1, 1, 1, 2)
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"deform_groups": 1}, r"deform_conv2d: offset: expected 12 channels \(2 · 3·2 taps · 1 def.*got 24"),
        ({"offset": (3, 24, 45)}, r"deform_conv2d: offset: expected 4 dimensions, got shape \(3, 24, 45\)"),
        ({"offset": (3, 24, 5, 8)}, r"deform_conv2d: offset: expected spatial size \(5, 9\)"),
        ({"weight": (6, 2, 3)}, r"deform_conv2d: weight: expected 4 dimensions, got shape \(6, 2, 3\)"),
        ({"input": (4, 9, 7)}, r"deform_conv2d: input: expected 4 dimensions"),
        ({"bias": True}, r"deform_conv2d: bias: expected False, there is none in v1, got True"),
        ({"bias": torch.zeros(6)}, r"deform_conv2d: bias: expected False, there is none in v1, got a Tensor"),
        ({"stride": 0}, r"deform_conv2d: stride: expected at least 1"),
        ({"im2col_step": 0}, r"deform_conv2d: im2col_step: expected at least 1, got 0"),
    ],
)
def test_bad_input(changed, message):
    input, offset, _, weight, _ = tensors()
    given = dict(input=input, offset=offset, weight=weight, groups=2, deform_groups=2, **GEOMETRY)
    for name, value in changed.items():
        given[name] = torch.zeros(value, dtype=torch.float64) if isinstance(value, tuple) else value
    with pytest.raises(RuntimeError, match=message):
        compat.deform_conv2d(**given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"deform_groups": 1}, r"modulated_deform_conv2d: offset: expected 12 channels .*, got 24"),
        ({"mask": (3, 24, *OUT)}, r"modulated_deform_conv2d: mask: expected 12 channels \(1 · 3·2 t.*got 24"),
        ({"offset": (3, 24, 4, 9)}, r"offset: expected at least 24 × 5 × 9 values per image, got 24 × 4 × 9"),
        ({"mask": (3, 12, 5, 8)}, r"mask: expected at least 12 × 5 × 9 values per image, got 12 × 5 × 8"),
        ({"bias": (5,)}, r"bias: expected shape \(6,\), got \(5,\)"),
        ({"stride": (1, 0)}, r"modulated_deform_conv2d: stride: expected at least 1, got \(1, 0\)"),
        ({"padding": [1]}, r"modulated_deform_conv2d: padding: expected an integer or 2 of them, got \[1\]"),
        ({"input": (4, 9, 7)}, r"modulated_deform_conv2d: input: expected 4 dimensions, got shape \(4, 9, 7"),
    ],
)
def test_bad_modulated_input(changed, message):
    given = dict(zip(("input", "offset", "mask", "weight", "bias"), tensors(), strict=True))
    given |= dict(groups=2, deform_groups=2, **GEOMETRY)
    for name, value in changed.items():
        is_shape = isinstance(value, tuple) and name != "stride"
        given[name] = torch.zeros(value, dtype=torch.float64) if is_shape else value
    with pytest.raises(RuntimeError, match=message):
        compat.modulated_deform_conv2d(**given)


# Layers


def inputs_of(layer):
    """What ``layer`` is called with."""
    input, offset, mask, _, _ = tensors(dtype=torch.float32)
    if isinstance(layer, (compat.DeformConv2dPack, compat.ModulatedDeformConv2dPack)):
        return (input,)
    return (input, offset) if isinstance(layer, compat.DeformConv2d) else (input, offset, mask)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    """mmcv's layer and ours: the same keys, and from the same parameters the same output."""
    arguments = (4, 6, (3, 2), *GEOMETRY.values(), 2, 2)
    theirs = randomize(getattr(mmcv_ops, name)(*arguments))
    ours = getattr(compat, name)(*arguments)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert ours.state_dict()._metadata == state._metadata  # versions
    ours.load_state_dict(state)
    inputs = inputs_of(ours)
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), atol=1e-5, rtol=1e-5)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(pickle.loads(pickle.dumps(ours))(*inputs), ours(*inputs))
    assert torch.equal(copy.deepcopy(ours)(*inputs), ours(*inputs))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 6), (6, 2)])
@pytest.mark.parametrize("geometry", [(1, 1, 1), ((2, 1), (1, 2), 1), (1, 2, 2)])
def test_input_smaller_than_the_kernel(size, geometry):
    """mmcv pads the input to the kernel's size, and the offset alike, and crops the output."""
    layer = randomize(compat.DeformConv2d(4, 6, 3, *geometry, deform_groups=2))
    stride, padding, dilation = (layer.stride, layer.padding, layer.dilation)
    axes = list(zip(size, stride, padding, dilation, strict=True))
    out = [(n + 2 * p - d * 2 - 1) // s + 1 for n, s, p, d in axes]
    input = torch.randn(2, 4, *size, requires_grad=True)
    offset = (torch.randn(2, 36, *out) * 2).requires_grad_()
    missing = [max(3 - n, 0) for n in size]
    pad = (0, missing[1], 0, missing[0])
    grown = [(max(n, 3) + 2 * p - d * 2 - 1) // s + 1 for n, s, p, d in axes]
    padded = reference.deform_conv(
        F.pad(input, pad),
        layer.weight,
        F.pad(offset, (0, grown[1] - out[1], 0, grown[0] - out[0])),
        None,
        None,
        *(stride, padding, dilation),
        1,
    )
    expected = padded[:, :, : out[0], : out[1]]
    output = layer(input, offset)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    got, want = (torch.autograd.grad(o.square().sum(), (input, offset)) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-4, rtol=1e-4)
    if grown == [o + m for o, m in zip(out, missing, strict=True)]:  # else mmcv stops
        theirs = mmcv_ops.DeformConv2d(4, 6, 3, *geometry, deform_groups=2)
        theirs.load_state_dict(layer.state_dict())
        torch.testing.assert_close(output, theirs(input, offset), atol=1e-5, rtol=1e-5)


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
    randomize(pack)
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
    def model():
        return randomize(nn.Sequential(Block(getattr(compat, name)(4, 6, 3)), nn.Conv2d(6, 6, 1)))

    expected = model().state_dict()
    old = {key.replace("conv2.conv_offset", "conv2_offset"): value for key, value in expected.items()}
    assert "0.conv2_offset.weight" in old
    for other in (model(), copy.deepcopy(model()), pickle.loads(pickle.dumps(model()))):
        nn.init.zeros_(other[0].conv2.conv_offset.weight)
        if loader == "torch":
            other.load_state_dict(old)
        else:
            checkpoint = importlib.import_module("mmengine.runner.checkpoint")
            checkpoint.load_state_dict(other, collections.OrderedDict(old), strict=True)
        for key, value in expected.items():
            assert torch.equal(other.state_dict()[key], value)


def test_other_keys_stay():
    """A network of one's own may have a ``conv2_offset`` beside a layer that is no pack."""
    block = Block(compat.DeformConv2d(4, 6, 3))
    block.conv2_offset = nn.Conv2d(4, 18, 3)
    assert not Block(nn.Conv2d(4, 6, 3))._load_state_dict_pre_hooks
    block.load_state_dict(randomize(copy.deepcopy(block)).state_dict())


@pytest.mark.parametrize("name", PACKS)
def test_compiled(name):
    pack = randomize(getattr(compat, name)(4, 6, (3, 2), **GEOMETRY, groups=2, deform_groups=2))
    input = tensors(dtype=torch.float32)[0]
    compiled = torch.compile(pack, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), pack(input))


@pytest.mark.parametrize("name", PACKS)
def test_packs_under_autocast(name):
    """The prediction is half, and what it is given to becomes so, as in mmcv."""
    arguments = (4, 6, (3, 2), *GEOMETRY.values(), 2, 2)
    theirs = randomize(getattr(mmcv_ops, name)(*arguments))
    ours = getattr(compat, name)(*arguments)
    ours.load_state_dict(theirs.state_dict())
    input = tensors(dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = ours(input), theirs(input)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", PACKS)
def test_empty_batch(name):
    pack = getattr(compat, name)(4, 6, 3, padding=1)
    output = pack(torch.zeros(0, 4, 7, 5))
    assert output.shape == (0, 6, 7, 5)
    output.sum().backward()
    assert not pack.weight.grad.any()


@pytest.mark.parametrize("name", LAYERS[:2])
def test_v1_has_no_bias(name):
    with pytest.raises(ValueError, match=f"{name}: bias: expected False, mmcv's v1 layers have none, got"):
        getattr(compat, name)(4, 6, 3, bias=True)


def test_bias_of_v2():
    assert list(compat.ModulatedDeformConv2d(4, 6, 3, bias=False).state_dict()) == ["weight"]
    assert not compat.ModulatedDeformConv2d(4, 6, 3).bias.any()
