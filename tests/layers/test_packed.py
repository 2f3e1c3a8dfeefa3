"""``dcnzoo.layers``: torch's convolutions with given or predicted offsets and masks."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init
from torch.nn.utils.parametrizations import weight_norm

import dcnzoo
import dcnzoo.ops.reference as reference
from dcnzoo import layers
from tests.helpers.modules import assert_same, randomise, shapes

SIZE = (7, 9, 5)
GEOMETRY = {"kernel_size": (3, 2, 1), "stride": (2, 1, 2), "padding": (1, 2, 0), "dilation": (1, 2, 1)}
OUTPUT_PADDING = (1, 0, 1)
PREDICTED = ("conv_offset.weight", "conv_offset.bias")

ranks = pytest.mark.parametrize("rank", [1, 2, 3])
directions = pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])


def name_of(rank, transposed):
    return f"DeformConv{'Transpose' * transposed}{rank}d"


def arguments(rank, transposed, **more):
    geometry = {name: values[:rank] for name, values in GEOMETRY.items()}
    if transposed:
        geometry["output_padding"] = OUTPUT_PADDING[:rank]
    return {"in_channels": 4, "out_channels": 8, **geometry, **more}


def make(rank, transposed, **more):
    return getattr(layers, name_of(rank, transposed))(**arguments(rank, transposed, **more))


def make_pack(rank, transposed, **more):
    return getattr(layers, f"Packed{name_of(rank, transposed)}")(**arguments(rank, transposed, **more))


def make_plain(rank, transposed, **more):
    plain = getattr(nn, name_of(rank, transposed).removeprefix("Deform"))
    return plain(**arguments(rank, transposed, **more))


def expected_output(layer, input, offset, mask):
    geometry = [layer.stride, layer.padding]
    function = reference.deform_conv
    if layer.transposed:
        geometry.append(layer.output_padding)
        function = reference.deform_conv_transpose
    return function(input, layer.weight, offset, mask, layer.bias, *geometry, layer.dilation, layer.groups)


def sample(rank, **options):
    return torch.randn(3, 4, *SIZE[:rank], **options)


@ranks
@directions
def test_as_torchs_convolution(rank, transposed):
    """Arguments, defaults and initial values are torch's and, without offset and mask, so are the results."""
    name = name_of(rank, transposed)
    plain = getattr(nn, name.removeprefix("Deform"))(4, 6, 3)
    for layer in (getattr(layers, name)(4, 6, 3), getattr(layers, f"Packed{name}")(4, 6, 3)):
        for attribute in plain.__constants__:
            assert getattr(layer, attribute) == getattr(plain, attribute), attribute
        assert layer.bias.shape == plain.bias.shape
    torch.manual_seed(0)
    plain = make_plain(rank, transposed, groups=2)
    torch.manual_seed(0)
    layer = make(rank, transposed, groups=2, im2col_step=2)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.weight, plain.weight) and torch.equal(layer.bias, plain.bias)
    input, scripted = sample(rank), torch.jit.script(layer)
    assert torch.equal(layer(input), plain(input))
    where = SIZE[:rank] if transposed else plain(input).shape[2:]
    offset = torch.randn(3, math.prod(layer.kernel_size) * rank, *where)
    mask = torch.rand(3, math.prod(layer.kernel_size), *where)
    for given in ((), (offset,), (offset, mask), (None, mask)):
        output = layer(input, *given)
        torch.testing.assert_close(scripted(input, *given), output)
        offset_mask = (*given, None, None)[:2]
        torch.testing.assert_close(output, expected_output(layer, input, *offset_mask), atol=1e-4, rtol=1e-5)
    if not transposed:
        return
    pack = make_pack(rank, True, groups=2)
    pack.load_state_dict(plain.state_dict(), strict=False)
    least = make_plain(rank, True, output_padding=0)(input).shape[2:]
    wanted = [size + stride - 1 for size, stride in zip(least, plain.stride, strict=True)]
    expected = plain(input, wanted)
    assert list(expected.shape[2:]) == wanted
    assert torch.equal(layer(input, output_size=wanted), expected)
    torch.testing.assert_close(pack(input, wanted), expected)
    with pytest.raises(ValueError, match="requested an output size of"):
        layer(input, output_size=[size + 5 for size in wanted])


@ranks
@directions
def test_shapes_and_repr(rank, transposed):
    assert list(make_pack(rank, transposed).state_dict()) == ["weight", "bias", *PREDICTED]
    assert "deformable=False" in repr(make_pack(rank, transposed, deformable=False))
    options = dict(modulated=True, offset_groups=2, mask_groups=4, offset_limit=3.0, im2col_step=8)
    pack = make_pack(rank, transposed, **options)
    kernel = GEOMETRY["kernel_size"][:rank]
    channels = math.prod(kernel) * (2 * rank + 4)
    predictor = (1,) * rank if transposed else kernel
    assert shapes(pack) == {
        "weight": (4 if transposed else 8, 8 if transposed else 4, *kernel),
        "bias": (8,),
        "conv_offset.weight": (channels, 4, *predictor),
        "conv_offset.bias": (channels,),
    }
    assert f"kernel_size={kernel}" in repr(pack)
    assert all(f"{name}={value}" in repr(pack) for name, value in options.items())


def test_from_the_meta_device_and_by_torchs_utilities():
    """Large models are created without storage, then initialised module by module, or loaded."""
    pack = make_pack(2, False, modulated=True, device="meta").to_empty(device="cpu")
    for module in pack.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert pack.weight.abs().sum() > 0
    assert not any(parameter.any() for name, parameter in pack.named_parameters() if name in PREDICTED)
    input = sample(2)
    output = randomise(pack)(input)
    torch.testing.assert_close(weight_norm(copy.deepcopy(pack))(input), output)
    empty = skip_init(layers.PackedDeformConv2d, **arguments(2, False), modulated=True)
    empty.load_state_dict(pack.state_dict())
    assert torch.equal(empty(input), output)


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        ("DeformConv2d", {"stride": (1, 1, 1)}, r": stride: .*got \(1, 1"),
        ("DeformConv1d", {"padding": "same"}, r": padding: .*got 'same'"),
        ("DeformConvTranspose3d", {"output_padding": (1, 2)}, r": output_padding: "),
        ("DeformConv2d", {"groups": 3}, "groups"),
        ("DeformConv2d", {"padding_mode": "mirror"}, "padding_mode"),
        ("DeformConvTranspose1d", {"padding_mode": "circular"}, "padding mode"),
        ("PackedDeformConv2d", {"mask_activation": "softmax"}, "mask_activation: .*without modulated=True"),
        ("PackedDeformConv2d", {"mask_groups": 2}, "mask_groups: .*without modulated=True"),
        ("PackedDeformConv2d", {"deformable": False, "offset_limit": 2}, "offset_limit: .*deformable=True"),
        ("PackedDeformConv1d", {"deformable": False, "offset_groups": 2}, "offset_groups: .*deformable=True"),
        ("PackedDeformConv2d", {"offset_groups": 3}, r"offset_groups: .*in_channels \(4\), got 3"),
        ("PackedDeformConv2d", {"mask_groups": 0}, "mask_groups: .*got 0"),
        ("PackedDeformConvTranspose1d", {"offset_groups": 4}, r"offset_groups: .*out_channels \(6\), got 4"),
        ("PackedDeformConv2d", {"offset_activation": "tanh"}, "offset_activation: .*got 'tanh'"),
        ("PackedDeformConv2d", {"mask_activation": "relu"}, "mask_activation: .*'sigmoid'"),
        ("PackedDeformConv2d", {"offset_limit": 0}, "offset_limit: "),
        ("PackedDeformConv2d", {"stride": 0}, "stride: .*at least 1, got 0"),
        ("DeformConv2d", {"padding": (0, -1)}, r"padding: .*at least 0, got \(0, -1\)"),
        ("PackedDeformConv2d", {"in_channels": 0}, "in_channels: .*got 0"),
        ("DeformConv2d", {"im2col_step": 0}, "im2col_step: .*at least 1, got 0"),
        ("PackedDeformConvTranspose1d", {"in_channels": 0}, "in_channels: .*got 0"),
    ],
)
def test_bad_arguments(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(layers, layer)(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments})


@pytest.mark.parametrize(
    ("layer", "argument"),
    [
        ("Conv2d", "output_padding"),
        ("Conv1d", "kernel"),
        ("ConvTranspose3d", "kernel"),
        ("Conv3d", "deform_groups"),
    ],
)
def test_an_unknown_argument_names_the_layer(layer, argument):
    with pytest.raises(TypeError, match=f"^PackedDeform{layer}.*{argument}"):
        getattr(layers, f"PackedDeform{layer}")(4, 6, 3, **{argument: 2})


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_bias_by_position(rank):
    """The arguments before ``deformable`` have the order of torch's layers."""
    assert getattr(layers, f"PackedDeformConv{rank}d")(8, 6, 3, 1, 1, 1, 2, False).bias is None
    assert getattr(layers, f"PackedDeformConvTranspose{rank}d")(8, 6, 3, 1, 1, 1, 0, 2, False).bias is None


@ranks
@directions
@pytest.mark.parametrize("kind", ["", "Packed"])
def test_function_is_the_operator_that_a_layer_calls(rank, transposed, kind):
    """A program that has its own kernel replaces it: the registered ``DCN``, the export for pnnx."""
    layer = getattr(layers, kind + name_of(rank, transposed))(**arguments(rank, transposed))
    calls = []
    layer.function = lambda *values: calls.append(values) or type(layer).function(*values)
    input = sample(rank)
    torch.testing.assert_close(layer(input), copy.deepcopy(layer)(input))
    assert calls[0][0] is input and calls[0][1] is layer.weight


@ranks
@directions
@pytest.mark.parametrize("kind", ["", "Packed"])
def test_a_layer_has_at_most_four_classes(rank, transposed, kind):
    layer = getattr(layers, kind + name_of(rank, transposed))
    assert len([base for base in layer.__mro__ if base.__module__.startswith("dcnzoo")]) <= 4


# Packs

OPTIONS = {
    "v1": {},
    "v1 grouped": {"offset_groups": 4, "offset_activation": nn.Softsign()},
    "v2": {"modulated": True, "offset_limit": 0.75},
    "v2 softmax": {"modulated": True, "mask_activation": "softmax", "offset_groups": 2, "mask_groups": 4},
    "v2 raw": {"modulated": True, "mask_activation": None, "im2col_step": 2, "bias": False},
    "mask only": {"modulated": True, "deformable": False, "mask_activation": layers.MaskSigmoid(scale=2)},
    "neither": {"deformable": False},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def by_hand(pack, input, options):
    """Offset and mask, computed from the parameters."""
    predict = getattr(F, f"conv{len(pack.kernel_size)}d")
    geometry = () if pack.transposed else (pack.stride, pack.padding, pack.dilation)
    offset = mask = None
    taps, rank = math.prod(pack.kernel_size), len(pack.kernel_size)
    channels = pack.offset_groups * taps * rank if options.get("deformable", True) else 0
    if channels:
        weight, bias = pack.conv_offset.weight[:channels], pack.conv_offset.bias[:channels]
        offset = predict(input, weight, bias, *geometry)
        if "offset_activation" in options:
            offset = offset / (1 + offset.abs())
        if "offset_limit" in options:
            offset = (offset / 0.75).tanh() * 0.75
    if options.get("modulated"):
        weight, bias = pack.conv_offset.weight[channels:], pack.conv_offset.bias[channels:]
        mask = predict(input, weight, bias, *geometry)
        activation = options.get("mask_activation", "sigmoid")
        if activation == "softmax":
            mask = torch.cat([(part.exp() / part.exp().sum(1, True)) for part in mask.split(taps, 1)], 1)
        elif activation is not None:
            mask = (1 if activation == "sigmoid" else 2) / (1 + (-mask).exp())
    return offset, mask


@ranks
@directions
@options
def test_pack_predicts_and_convolves(rank, transposed, options):
    pack = randomise(make_pack(rank, transposed, groups=2, dtype=torch.float64, **options))
    input = sample(rank, dtype=torch.float64)
    given = by_hand(pack, input, options)
    torch.testing.assert_close(pack.predict(input), given)
    assert_same(pack(input), expected_output(pack, input, *given), list(pack.parameters()))


@ranks
@directions
def test_pack_starts_as_convolution_and_learns(rank, transposed):
    plain = make_plain(rank, transposed)
    pack = make_pack(rank, transposed, modulated=True, mask_activation=layers.MaskSigmoid(scale=2))
    assert pack.load_state_dict(plain.state_dict(), strict=False).missing_keys == [
        *PREDICTED,
        "mask_activation.scale",
    ]
    assert not any(parameter.any() for name, parameter in pack.named_parameters() if name in PREDICTED)
    input = sample(rank)
    output = pack(input)
    torch.testing.assert_close(output, plain(input))
    output.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in pack.parameters())


def test_state_dict_that_does_not_fit():
    pack = make_pack(2, False)
    state = pack.state_dict() | {"conv_offset.weight": torch.zeros(12, 3, 3, 2)}  # 3 does not divide 4
    with pytest.raises(RuntimeError, match=r"size mismatch for conv_offset\.weight"):
        pack.load_state_dict(state)


# PyTorch's operations on modules


def test_memory_format_dtype_and_autocast():
    pack = randomise(make_pack(2, False, modulated=True), 0.1)
    input, layout = sample(2), dict(memory_format=torch.channels_last)
    output = pack(input)
    last = copy.deepcopy(pack).to(**layout)(input.contiguous(**layout))
    assert last.is_contiguous(**layout)
    torch.testing.assert_close(last, output)
    half = copy.deepcopy(pack).bfloat16()(input.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = pack(input)
    for other in (half, automatic):
        assert other.dtype == torch.bfloat16
        torch.testing.assert_close(other.float(), output, atol=0.02 * output.abs().max().item(), rtol=0)


# Options that other networks need


@ranks
@directions
def test_one_map_without_a_batch(rank, transposed):
    """As torch's convolutions."""
    x = torch.randn(4, *SIZE[:rank], dtype=torch.float64)
    pack = randomise(make_pack(rank, transposed, modulated=True, dtype=torch.float64))
    torch.testing.assert_close(pack(x), pack(x[None])[0])
    for field, batch in zip(pack.predict(x), pack.predict(x[None]), strict=True):
        torch.testing.assert_close(field, batch[0])
    layer = randomise(make(rank, transposed, dtype=torch.float64))
    fields = pack.predict(x[None])
    torch.testing.assert_close(layer(x, *(t[0] for t in fields)), layer(x[None], *fields)[0])
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@ranks
def test_separable_prediction(rank):
    """As in DCNv3: depthwise with the layer's geometry, norm of each pixel, GELU, pointwise."""
    pack = randomise(make_pack(rank, False, modulated=True, prediction="separable", dtype=torch.float64))
    x = torch.randn(2, 4, *SIZE[:rank], dtype=torch.float64)
    depthwise, norm, _ = pack.offset_features
    geometry = (pack.stride, pack.padding, pack.dilation, 4)
    y = getattr(F, f"conv{rank}d")(x, depthwise.weight, depthwise.bias, *geometry)
    mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, correction=0)
    scale, shift = (t.view(-1, *[1] * rank) for t in (norm.weight, norm.bias))
    y = F.gelu((y - mean) / (variance + 1e-5).sqrt() * scale + shift)
    y = torch.einsum("nc...,oc->no...", y, pack.conv_offset.weight.flatten(1))
    y = y + pack.conv_offset.bias.view(-1, *[1] * rank)
    offset, mask = pack.predict(x)
    torch.testing.assert_close(torch.cat([offset, mask.logit()], 1), y)
    assert make_pack(rank, False).state_dict().keys() == {"weight", "bias", *PREDICTED}
    for layer, wrong in (
        (layers.PackedDeformConv2d, "wide"),
        (layers.PackedDeformConvTranspose2d, "separable"),
    ):
        with pytest.raises(ValueError, match=f"{layer.__name__}: prediction: expected 'dense'.*{wrong}"):
            layer(4, 4, 3, prediction=wrong)


@pytest.mark.parametrize("prediction", ["dense", "separable"])
def test_float32_offsets_under_autocast(prediction):
    x = torch.randn(1, 4, 9, 8)
    for option, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        pack = layers.PackedDeformConv2d(4, 6, 3, prediction=prediction, float32_offsets=option)
        randomise(pack)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            offset, _ = pack.predict(x)
            assert pack(x).dtype == torch.bfloat16
        assert offset.dtype == dtype
    torch.testing.assert_close(offset, pack.predict(x)[0])
    assert pack.to("meta")(x.to("meta")).shape == (1, 6, 7, 6)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_other_padding_modes(mode, rank):
    """These modes are usual in U-Nets. The layer pads the input before it calls the operator."""
    options = dict(stride=2, padding=(1, 2, 1)[:rank], padding_mode=mode)
    plain = getattr(nn, f"Conv{rank}d")(4, 6, (3, 4, 3)[:rank], **options)
    pack = getattr(layers, f"PackedDeformConv{rank}d")(4, 6, (3, 4, 3)[:rank], **options)
    pack.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 4, *(7, 9, 8)[:rank])
    torch.testing.assert_close(pack(x), plain(x))
    torch.testing.assert_close(torch.jit.script(pack)(x), plain(x))
    network = nn.Sequential(plain)
    dcnzoo.to_deformable(network, "0")
    assert network[0].padding_mode == mode
    torch.testing.assert_close(network(x), plain(x))
    layers.track_offsets(pack)  # statistics refer to the padded map, which the operator gets
    nn.init.constant_(pack.conv_offset.bias, -1.6)
    for input in (x, x[0]):
        pack(input)
        assert layers.offset_statistics(pack)[""].outside > 0


def test_integers_of_numpy():
    one, three = np.int64(1), np.int64(3)
    pack = layers.PackedDeformConv2d(4, 6, three, stride=(one, one), padding=one, dilation=one)
    assert all(type(value) is int for value in (*pack.kernel_size, *pack.stride, *pack.padding))
    x, offset = torch.randn(1, 4, 5, 6), torch.zeros(1, 18, 5, 6)
    result = dcnzoo.ops.deform_conv2d(x, pack.weight, offset, stride=one, padding=(one, one))
    torch.testing.assert_close(result, nn.functional.conv2d(x, pack.weight, padding=1))


def test_the_layer_that_many_projects_copy():
    """It has ``offset_conv``, ``modulator_conv`` and ``regular_conv``; its mask is 2 · sigmoid."""
    offset_conv, modulator, regular = (
        nn.Conv2d(4, 18, 3, padding=1),
        nn.Conv2d(4, 9, 3, padding=1),
        nn.Conv2d(4, 6, 3),
    )
    parts = {"offset_conv": offset_conv, "modulator_conv": modulator, "regular_conv": regular}
    state = {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }
    pack = layers.PackedDeformConv2d(
        4, 6, 3, padding=1, modulated=True, mask_activation=layers.MaskSigmoid(2)
    )
    pack.load_state_dict(state)
    x = torch.randn(2, 4, 7, 9)
    mask = 2 * modulator(x).sigmoid()
    expected = dcnzoo.ops.deform_conv2d(x, regular.weight, offset_conv(x), mask, regular.bias, padding=1)
    torch.testing.assert_close(pack(x), expected)


def test_the_other_layer_that_many_projects_copy():
    """It has ``p_conv`` (y of all taps, then x), ``m_conv`` and ``conv``; points stay on the padded map."""
    parts = {"p_conv": nn.Conv2d(2, 18, 3, padding=1), "m_conv": nn.Conv2d(2, 9, 3, padding=1)}
    parts["conv"] = nn.Conv2d(2, 3, 3, stride=3)
    state = {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }
    pack = layers.PackedDeformConv2d(2, 3, 3, padding=1, modulated=True)
    pack.load_state_dict(state)
    x = 3 * torch.randn(1, 2, 5, 6)
    padded, offset, mask = (
        nn.functional.pad(x, [1] * 4)[0],
        parts["p_conv"](x)[0],
        parts["m_conv"](x)[0].sigmoid(),
    )
    assert offset.abs().max() > 4  # far beyond the border
    expected = torch.zeros(1, 3, 5, 6) + parts["conv"].bias.view(1, 3, 1, 1)
    for i, j, tap in itertools.product(range(5), range(6), range(9)):
        y, x0 = i + tap // 3 + offset[tap, i, j].item(), j + tap % 3 + offset[9 + tap, i, j].item()
        y, x0 = min(max(y, 0.0), 6.0), min(max(x0, 0.0), 7.0)
        for row, column in itertools.product(range(7), range(8)):
            share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x0 - column)) * mask[tap, i, j]
            expected[0, :, i, j] += (
                share * parts["conv"].weight[:, :, tap // 3, tap % 3] @ padded[:, row, column]
            )
    torch.testing.assert_close(pack(x), expected)


def test_a_missing_bias_is_a_missing_key():
    pack = layers.PackedDeformConv2d(4, 6, 3, padding=1)
    nn.init.constant_(pack.conv_offset.bias, 3)
    states = pack.state_dict()
    del states["conv_offset.bias"]
    assert pack.load_state_dict(states, strict=False).missing_keys == ["conv_offset.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"conv_offset\.bias"'):
        pack.load_state_dict(states)
    assert (pack.conv_offset.bias == 3).all()
    # a layout whose convolutions have no bias at all is converted
    states["offset_conv.weight"] = states.pop("conv_offset.weight")
    pack.load_state_dict(states)
    assert not pack.conv_offset.bias.any()
