"""``dcnzoo.to_deformable`` and ``from_deformable`` on networks of any kind."""

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import dcnzoo
from dcnzoo.layers import DeformConv2d, MaskSigmoid, PackedDeformConv2d, track_offsets
from dcnzoo.layers.convert import ConversionReport, replace_convolutions


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.downsample = nn.Conv2d(inputs, 4 * width, 1, stride)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.conv3(y) + self.downsample(x)).relu()


def resnet():
    stages = [("conv1", nn.Conv2d(3, 8, 7, 2, 3, bias=False)), ("bn1", nn.BatchNorm2d(8))]
    for index, (inputs, stride) in enumerate(((8, 1), (32, 2), (32, 2), (32, 2)), 1):
        stages.append((f"layer{index}", nn.Sequential(Bottleneck(inputs, 8, stride), Bottleneck(32, 8))))
    return nn.Sequential(OrderedDict(stages))


class UNet3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Conv3d(1, 4, 3, padding="same")
        self.down = nn.Conv3d(4, 6, (3, 2, 3), stride=2, padding=(1, 0, 0))
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.dec = nn.Conv3d(8, 2, 3, padding=1, dilation=1)

    def forward(self, x):
        skip = self.enc(x).relu()
        deep = self.up(self.down(skip).relu(), list(skip.shape[2:]))
        return self.dec(torch.cat([skip, deep], 1))


def convolutions_1d():
    return nn.Sequential(nn.Conv1d(3, 8, 5, 2, 2), nn.GELU(), nn.ConvTranspose1d(8, 2, 4, 2, 1))


NETWORKS = {  # (factory, where, input shape, number of matches)
    "resnet": (resnet, "layer[3-4].*.conv2", (2, 3, 64, 80), 4),
    "unet3d": (UNet3d, ["enc", "down", "up", "dec"], (2, 1, 8, 6, 9), 4),
    "1d": (convolutions_1d, "*", (2, 3, 21), 2),
}


def is_new(name):
    return "conv_offset" in name


def build(network, eval=True):
    factory, where, shape, count = NETWORKS[network]
    model = factory()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.train(not eval), where, torch.randn(shape), count


@pytest.mark.parametrize(
    ("network", "kind", "options"),
    [
        *[(network, kind, {}) for network in NETWORKS for kind in ("v1", "v2")],
        ("resnet", "v1", {"offset_limit": 3}),
        ("unet3d", "v2", {"mask_activation": "softmax", "im2col_step": 1}),
        ("1d", "v2", {"mask_activation": MaskSigmoid(2), "offset_activation": nn.Tanh()}),
    ],
)
def test_output_is_unchanged_before_training_and_after_the_way_back(network, kind, options):
    model, where, input, count = build(network)
    plain, expected, order = copy.deepcopy(model), model(input), list(model.state_dict())
    parameters = dict(model.named_parameters())
    report = dcnzoo.to_deformable(model, where, kind, **options)
    assert len(report.replaced) == count and not report.refused
    assert (model(input) - expected).abs().max() <= 1e-5
    converted = dict(model.named_parameters())
    assert all(converted[name] is parameter for name, parameter in parameters.items())
    assert [name for name in model.state_dict() if not is_new(name)] == order

    assert len(dcnzoo.from_deformable(model).replaced) == count
    assert torch.equal(model(input), expected)
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    for (_, now), (_, then) in zip(model.named_modules(), plain.named_modules(), strict=True):
        assert type(now) is type(then)
        for attribute in ("stride", "dilation", "groups", "output_padding", "kernel_size", "transposed"):
            assert getattr(now, attribute, None) == getattr(then, attribute, None)


ORDERS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 8, 3, groups=4, padding_mode="reflect", padding=1),
        nn.Conv2d(1, 6, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("orders", [(a, b) for a in ORDERS for b in ORDERS], ids=str)
def test_the_order_of_the_output_in_memory_is_torchs(layer, orders):
    model = nn.Sequential(copy.deepcopy(layer)).to(memory_format=orders[0])
    x = torch.randn(2, layer.in_channels, 7, 9).to(memory_format=orders[1])
    expected = model(x)
    dcnzoo.to_deformable(model, "0")
    assert model(x).stride() == expected.stride()


def test_scripts_copies_and_round_trips():
    """The new layers alone: test_programs.py. A transposed one gets the size of its output here."""
    model, where, input, count = build("unet3d")
    before = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    dcnzoo.to_deformable(model, where)
    missing, unexpected = model.load_state_dict(before, strict=False)  # the plain network's checkpoint
    assert len(missing) == 2 * count and not unexpected
    for name, parameter in model.named_parameters():
        if is_new(name):
            nn.init.normal_(parameter, std=0.1)
    expected = model(input)

    dcnzoo.to_deformable(other, where)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(input), expected)
    torch.testing.assert_close(torch.jit.script(other)(input), expected, atol=1e-5, rtol=1e-5)


def test_everything_else_is_kept():
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 2)), nn.Conv2d(6, 4, 3)).to(torch.float64)
    state = torch.get_rng_state()
    model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    model[0].eval()
    dcnzoo.to_deformable(model, "*", offset_groups=2, mask_groups=1)
    assert torch.equal(torch.get_rng_state(), state)
    frozen, trained = model
    assert not frozen.weight.requires_grad and frozen.bias.requires_grad
    assert not frozen.training and not frozen.conv_offset.training and trained.training
    for pack in model:
        for name, parameter in pack.named_parameters():
            assert parameter.dtype == torch.float64
            if parameter.dim() == 4:
                assert parameter.is_contiguous(memory_format=torch.channels_last), name
        assert pack.conv_offset.weight.requires_grad
    assert model(torch.randn(1, 4, 8, 9, dtype=torch.float64)).shape == (1, 4, 4, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_meta_device(dtype):
    model = nn.Sequential(nn.Conv2d(4, 6, 3)).to(dtype)
    input = torch.randn(1, 4, 8, 8, dtype=dtype)
    expected = model(input)
    dcnzoo.to_deformable(model, "0")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    torch.testing.assert_close(model(input), expected, atol=1e-2, rtol=1e-2)
    nowhere = nn.Sequential(nn.Conv2d(4, 6, 3, device="meta", dtype=dtype))
    dcnzoo.to_deformable(nowhere, "0")
    assert {parameter.device.type for parameter in nowhere.parameters()} == {"meta"}


def test_modules_of_an_activation_are_copied():
    activation = nn.PReLU(init=0.5)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)).double()
    dcnzoo.to_deformable(model, "*", offset_activation=activation)
    first, second = (pack.offset_activation for pack in model)
    assert first is not second and first is not activation
    assert first.weight.item() == 0.5 and first.weight.dtype == torch.float64


def test_a_shared_module_stays_shared():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict(
        {"one": nn.Sequential(shared), "two": nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), shared])}
    )
    model["two"][0].weight = shared.weight  # tied
    report = dcnzoo.to_deformable(model, "one.*")
    assert model["one"][0] is model["two"][1] and isinstance(model["one"][0], PackedDeformConv2d)
    assert list(report.replaced) == ["one.0", "two.1"]
    assert report.replaced["two.1"] == "the same as one.0"
    assert type(model["two"][0]) is nn.Conv2d and model["two"][0].weight is model["one"][0].weight
    dcnzoo.from_deformable(model, "two.*")
    assert model["one"][0] is model["two"][1] and type(model["one"][0]) is nn.Conv2d


# Which modules


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("layer[3-4].*.conv2", {"layer3.0.conv2", "layer3.1.conv2", "layer4.0.conv2", "layer4.1.conv2"}),
        ("layer4.1.conv2", {"layer4.1.conv2"}),
        (["conv1", "layer2.?.conv2"], {"conv1", "layer2.0.conv2", "layer2.1.conv2"}),
        (lambda name, module: module.stride == (2, 2) and module.kernel_size == (3, 3), None),
    ],
)
def test_where(where, expected):
    model = resnet()
    report = dcnzoo.to_deformable(model, where)
    packs = {name for name, module in model.named_modules() if isinstance(module, PackedDeformConv2d)}
    assert packs == (expected or {"layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"})
    assert packs == set(report.replaced)


def mistakes():
    """Calls that replace nothing, and a pattern for the error."""
    for where, named in (
        ("layer[5-6].*.conv2", r"nearest are 'layer\d\.\d"),
        ("conv2", r"'\*conv2' matches 'layer1\.0\.conv2'"),
        (["layer4.*.conv2", "layer4.*.conv9"], r"layer4\.\*\.conv9"),
        ("bn1", "bn1"),
        (lambda name, module: False, "where: "),
        (3, "where: .*3"),
        ([], r"where: .*\[\]"),
        ("*.conv1", "one tap"),
    ):
        yield resnet(), (where,), {}, named
    for option in (
        {"kind": "v9"}, {"mask_activation": "sigmoids"}, {"mask_activation": None},
        {"mask_activation": nn.Sigmoid()}, {"offset_activation": nn.Sigmoid()}, {"offset_limit": -1},
    ):  # fmt: skip
        yield resnet(), ("layer4.*.conv2",), option, f"{next(iter(option))}: "
    yield nn.Conv2d(3, 3, 3), ("*",), {}, "the root module"
    yield nn.Linear(3, 3), ("*",), {}, "model: .*a convolution"
    yield torch.compile(resnet(), backend="eager"), ("*",), {}, "OptimizedModule"


@pytest.mark.parametrize(("model", "arguments", "options", "named"), mistakes())
def test_where_nothing_is_replaced(model, arguments, options, named):
    before = repr(model)
    with pytest.raises(ValueError, match=rf"^to_deformable: .*{named}"):
        dcnzoo.to_deformable(model, *arguments, **options)
    assert repr(model) == before


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Renamed(nn.Conv3d):
    """As Conv3DSimple of torchvision and the depthwise convolutions of Transformers' EfficientNet."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    @staticmethod
    def get_downsample_stride(stride):
        return stride


class Scaled(nn.Conv2d):
    """A network may read these attributes."""

    scale = 3


class Frozen(nn.Conv2d):
    def train(self, mode=True):
        return super().train(False)


def test_a_subclass_that_computes_the_same_is_converted():
    model = nn.Sequential(Renamed(4), nn.ReLU())
    x = torch.randn(2, 4, 5, 6, 7)
    before = model(x)
    report = dcnzoo.to_deformable(model, "0")
    torch.testing.assert_close(model(x), before)
    assert report.replaced["0"].startswith("Renamed → PackedDeformConv3d")


def changed(change, layer=nn.Conv2d):
    module = layer(4, 4, 3)
    change(module)
    return module


REFUSED = {
    "padding='same' with an even kernel": nn.Conv2d(4, 4, (3, 2), padding="same"),
    "Standardised, a subclass": Standardised(4, 4, 3),
    "Scaled, a subclass with members of its own: scale": Scaled(4, 4, 3),
    "Frozen, a subclass with members of its own: train": Frozen(4, 4, 3),
    "an attribute 'rank'": changed(lambda module: setattr(module, "rank", 4)),
    "an attribute 'offset_channels'": changed(lambda module: setattr(module, "offset_channels", 4)),
    "PackedDeformConv2d, not": PackedDeformConv2d(4, 4, 3),
    "DeformConv2d, not": DeformConv2d(4, 4, 3),
    "lazy": nn.LazyConv2d(4, 3),
    "backward hooks": changed(lambda module: module.register_full_backward_hook(print)),
    "forward pre hook": nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
    "parametrizations": parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "`forward` set on": changed(lambda module: setattr(module, "forward", print)),
    "buffers": changed(lambda module: module.register_buffer("mask", torch.ones(1))),
    "one tap": nn.Conv2d(4, 4, 1),
    "torch.complex64": nn.Conv2d(4, 4, 3, dtype=torch.complex64),
    "offset_groups: expected a divisor of in_channels (3), got 2": nn.Conv2d(3, 4, 3),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason):
    module = REFUSED[reason]
    model = nn.ModuleList([nn.Conv2d(2, 2, 3), module])
    with pytest.warns(UserWarning, match="to_deformable: 1 of 2") as caught:
        report = dcnzoo.to_deformable(model, "*", offset_groups=2)
    assert caught[0].filename == __file__
    assert list(report.replaced) == ["0"] and list(report.refused) == ["1"]
    assert reason in report.refused["1"]
    assert model[1] is module


def test_replace_convolutions():
    """Any module can be the new one; subclasses of torch's convolutions only if requested."""
    model = nn.ModuleDict(
        {"plain": nn.Conv2d(3, 4, 3), "sub": Standardised(3, 4, 3), "linear": nn.Linear(3, 3)}
    )
    for subclasses, replaced in ((False, ["plain"]), (True, ["plain", "sub"])):
        copied = copy.deepcopy(model)
        report = replace_convolutions(copied, "*", lambda conv: nn.Identity(), subclasses=subclasses)
        assert list(report.replaced) == replaced
        assert [name for name, module in copied.items() if type(module) is nn.Identity] == replaced
    name = "layer10.0.conv"
    table = str(ConversionReport({name: "Conv2d → DCN"}, {"fc": "is lazy"})).splitlines()
    assert table == [
        f"{name}  Conv2d → DCN",
        f"{'fc':14}  not replaced: is lazy",
        "1 replaced, 1 not replaced",
    ]


def test_same_and_valid_padding():
    model = nn.Sequential(
        nn.Conv2d(3, 4, (5, 3), padding="same", dilation=(1, 2)), nn.Conv2d(4, 2, 2, padding="valid")
    )
    input = torch.randn(1, 3, 9, 8)
    expected = model(input)
    dcnzoo.to_deformable(model, "*")
    assert [pack.padding for pack in model] == [(2, 2), (0, 0)]
    torch.testing.assert_close(model(input), expected)


def test_padding_is_what_torchs_forward_reads():
    """Attributes that were changed after construction: with another padding_mode, it reads no ``padding``."""
    plain, reflected = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
    plain.padding, plain.stride, plain.kernel_size, reflected.padding = 2, 2, 5, (0, 0)
    late = nn.Conv2d(3, 3, (1, 3), padding=(2, 0))
    late.padding_mode = "circular"
    model = nn.Sequential(plain, reflected, late)
    input = torch.randn(1, 3, 9, 8)
    expected = model(input)
    dcnzoo.to_deformable(model, "*", mask_activation="softmax")
    torch.testing.assert_close(model(input), expected)
    model[1].padding = (5, 5)
    torch.testing.assert_close(model(input), expected)
    dcnzoo.from_deformable(model)
    torch.testing.assert_close(model(input), expected)


def test_a_probe_trains_no_activation():
    """It predicts for an input of zeros, which are no statistics."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    dcnzoo.to_deformable(model, "1", offset_activation=nn.BatchNorm2d(18))
    norm = model[1].offset_activation
    assert norm.num_batches_tracked == 0 and norm.training
    norm.eval()
    dcnzoo.from_deformable(model)
    assert norm.num_batches_tracked == 0 and not norm.training


def test_without_values():
    """Of fake tensors: nothing can be probed, and nothing shows that offsets are zero."""
    with FakeTensorMode():
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
        dcnzoo.to_deformable(model, "0")
        assert model(torch.randn(1, 3, 5, 6)).shape == (1, 3, 5, 6)
        with pytest.raises(ValueError, match="has no values"):
            dcnzoo.from_deformable(model)


# Back


def trained(pack=None, weight=0.0, offset_bias=0.0, mask_bias=0.0):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    dcnzoo.to_deformable(model, "*")
    if pack is not None:
        model[1] = pack
        return model
    nn.init.constant_(model[1].conv_offset.weight, weight)
    with torch.no_grad():
        model[1].conv_offset.bias[:18], model[1].conv_offset.bias[18:] = offset_bias, mask_bias
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (trained(offset_bias=0.25), "has offsets, up to 0.25 pixels"),
        (trained(weight=0.25), "has learnt offsets or a mask"),
        (trained(mask_bias=1), "has a mask of 1.46, not 1"),
        (trained(mask_bias=torch.tensor([0.0] * 8 + [1])), "has a mask of 1.46, not 1"),
        (trained(pack=PackedDeformConv2d(3, 3, 3, modulated=True)), "has a mask of 0.5, not 1"),
        (
            trained(pack=changed(lambda m: m.register_forward_hook(print), PackedDeformConv2d)),
            "has forward hooks",
        ),
    ],
)
def test_what_is_not_folded(model, reason):
    pack = model[1]
    with pytest.warns(UserWarning, match="from_deformable: 1 of 2"):
        report = dcnzoo.from_deformable(model)
    assert list(report.replaced) == ["0"] and report.refused["1"].startswith(reason)
    assert type(model[0]) is nn.Conv2d and model[1] is pack
    with pytest.raises(ValueError, match=r"from_deformable: .*'1': "):
        dcnzoo.from_deformable(model)


def test_wrong_models():
    with pytest.raises(TypeError, match=r"^to_deformable: model: .*got str"):
        dcnzoo.to_deformable("resnet", "*")
    with pytest.raises(ValueError, match=r"from_deformable: model: .*a pack"):
        dcnzoo.from_deformable(resnet(), "*")


def test_folds_what_can_only_be_zero():
    model = nn.Sequential(PackedDeformConv2d(3, 3, 3), PackedDeformConv2d(3, 3, 3, deformable=False))
    input = torch.randn(1, 3, 8, 8)
    expected = model(input)
    dcnzoo.from_deformable(model)
    torch.testing.assert_close(model(input), expected)
    assert [type(module) for module in model] == [nn.Conv2d] * 2


def test_depthwise_layers_at_their_price():
    """A dense prediction costs many times the layer; the report recommends the separable one."""

    def network():
        return nn.Sequential(nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.Conv2d(64, 64, 1))

    dense, separable = network(), network()
    report = dcnzoo.to_deformable(dense, "0", kind="v1")
    # 49 taps · 64 channels, twice; with the prediction of 98 channels, and samples of 4 corners
    flops = [2 * 49 * 64, 2 * 49 * 64 + 2 * 98 * 64 * 49 + 8 * 49 * 64]
    assert report.replaced["0"].endswith(f"{flops[0]:,} → {flops[1]:,} FLOPs per pixel")
    assert "1 depthwise layer" in report.advice and "separable" in str(report)
    report = dcnzoo.to_deformable(separable, "0", kind="v1", prediction="separable")
    assert not report.advice
    weights = 49 * 64 + 98 * 64  # depthwise, pointwise
    assert sum(p.numel() for p in separable[0].parameters()) == 49 * 64 + 64 + weights + 3 * 64 + 98
    x = torch.randn(1, 64, 9, 8)
    torch.testing.assert_close(
        separable[0](x), nn.functional.conv2d(x, separable[0].weight, separable[0].bias, padding=3, groups=64)
    )
    assert list(dcnzoo.to_deformable(nn.Sequential(separable, nn.Conv2d(4, 4, 3)), "*").replaced) == ["1"]
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 4, 3))
    dcnzoo.to_deformable(transposed, "0", prediction="separable")
    assert transposed[0].offset_features is None


# Layers that the network does not use


class Merged(nn.Module):
    """As SPAN, ECB and RepVGG: for evaluation, another convolution gets the merged weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.merged = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        if self.training:
            return self.conv(x)
        self.merged.weight.data.copy_(self.conv.weight)
        return self.merged(x)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return nn.functional.conv2d(x, 2 * self.conv.weight, padding=1)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.layers = [self.conv]

    def forward(self, x):
        return self.layers[0](x)


class Frozen(Reader):
    def forward(self, x):
        with torch.no_grad():
            y = self.conv(x)
        return y * self.conv.weight.sum()


class Unlearnt(Listed):
    @torch.no_grad()
    def forward(self, x):
        return self.conv(x)


class Residual(Listed):
    """Its code depends on the class of the layer."""

    def forward(self, x):
        return self.conv(x) + (x if isinstance(self.conv, nn.Conv2d) else 0)


class Auxiliary(Merged):
    def forward(self, x):
        y = self.merged(x)
        return (y, self.conv(y)) if self.training else y


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Unlearnt, "in training .*get no gradient: 'conv'"),
        (Merged, "in evaluation .*not called: 'conv'"),
        (Reader, "in training .*not called: 'conv'"),
        (Listed, "in training .*not called: 'conv'"),
        (Frozen, "in training .*get no gradient: 'conv'"),
    ],
)
def test_layers_that_the_network_does_not_use(block, message):
    x = torch.randn(2, 3, 6, 7)
    model = block()
    report = dcnzoo.to_deformable(model, "conv")
    report.check(model)
    with pytest.raises(RuntimeError, match=message):
        report.check(model, x)
    before = repr(model := block())
    with pytest.raises(RuntimeError, match=message):
        dcnzoo.to_deformable(model, "conv", example=(x,))
    assert repr(model) == before


def test_a_network_that_computes_something_else():
    before = repr(model := Residual())
    with pytest.raises(RuntimeError, match="same output in evaluation"):
        dcnzoo.to_deformable(model, "conv", example=torch.randn(2, 3, 6, 7))
    assert repr(model) == before


def test_a_layer_that_only_training_calls():
    x = torch.randn(2, 3, 6, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dcnzoo.to_deformable(Auxiliary(), "conv", example=x)
        dcnzoo.to_deformable(model := Auxiliary(), "conv")
        model(x)
        model.eval()(x=x)


def test_an_example_with_which_the_network_does_not_run():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    before = repr(model)
    with pytest.raises(RuntimeError, match=r"example: .* in training, got ValueError: Expected more than 1"):
        dcnzoo.to_deformable(model, "0", example=torch.randn(1, 3, 8, 8))
    assert repr(model) == before


def test_the_sizes_are_those_of_the_weight():
    """Which programs replace, for grey pictures; torch reads no other number of channels."""
    for make, axis in ((nn.Conv2d, 1), (nn.ConvTranspose2d, 0)):
        model = nn.Sequential(make(3, 8, 3, padding=1))
        model[0].weight = nn.Parameter(model[0].weight.sum(axis, keepdim=True))
        x = torch.randn(1, 1, 8, 8)
        expected = model(x)
        dcnzoo.to_deformable(model, "0")
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("block", "modes"), [(Merged, ["evaluation"]), (Reader, ["training", "evaluation"])])
def test_the_first_forward_in_each_mode_warns_of_layers_that_are_not_called(block, modes):
    """Once in each mode, and in a copy too."""
    model, x = block(), torch.randn(2, 3, 6, 7)
    dcnzoo.to_deformable(model, "conv")
    for copied in (copy.deepcopy(model), model):
        with pytest.warns(UserWarning, match="not called: 'conv'") as caught:
            for training in (True, True, False, False):
                copied.train(training)(x)
        assert [str(w.message).split(" that calls")[0].split()[-1] for w in caught] == modes
        assert not copied._forward_hooks and not copied._forward_pre_hooks


def test_first_forwards_in_two_threads():
    """A forward that begins does not forget the calls of another one."""
    called, begun = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            called.set()
            assert begun.wait(60)
            return x

    model, x = nn.Sequential(nn.Conv2d(3, 3, 3), Waits()), torch.randn(2, 3, 6, 7)
    dcnzoo.to_deformable(model, "0")
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        other = pool.submit(model, x)
        assert called.wait(60)
        model[0].register_forward_pre_hook(lambda *_: begun.set() or (wait([other]) and None))
        model(x)
        other.result()


def test_no_warning_of_layers_that_are_called_in_another_way():
    def network():
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
        dcnzoo.to_deformable(model, "0")
        return model

    x = torch.randn(2, 3, 60, 70)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.jit.script(network())(x)
        torch.compile(network(), backend="eager", fullgraph=True)(x)
        model = network()
        model[0].compile(backend="eager")
        model(x)
        dcnzoo.fused(network().eval())(x)
        torch.save(network(), io.BytesIO())
        dcnzoo.from_deformable(model := network())
        model(x)


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_that_are_used(network):
    model, where, x, _ = build(network, eval=False)
    before = copy.deepcopy(model.state_dict())
    report = dcnzoo.to_deformable(model, where, example=x)
    report.check(model, x)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_attributes_of_a_host_are_carried_over():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    model[0].f, model[0].i, model[0].type, model[0].lr_scale = -1, 0, "Conv", 0.1
    dcnzoo.to_deformable(model, "0")
    track_offsets(model)
    model(torch.randn(1, 3, 5, 5))
    attributes = set(vars(nn.Conv2d(1, 1, 1)))
    for change in (lambda: None, lambda: dcnzoo.from_deformable(model)):
        change()
        assert (model[0].f, model[0].i, model[0].type, model[0].lr_scale) == (-1, 0, "Conv", 0.1)
    assert set(vars(model[0])) - attributes == {"f", "i", "type", "lr_scale"}


def test_a_converted_layer_does_not_keep_the_others():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 64, 3))
    dcnzoo.to_deformable(model, "*")
    assert len(pickle.dumps(model[0])) < 1.2 * len(pickle.dumps(PackedDeformConv2d(4, 6, 3, modulated=True)))
    first, other = model[0], weakref.ref(model[1])
    assert copy.deepcopy(first)._first_forward is None
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # they still warn
        copied.append(copied[1])
        with pytest.warns(UserWarning, match="not called"):
            copied[1].forward = lambda x: x
            copied(torch.randn(1, 4, 8, 8))
    del model, copied
    gc.collect()
    assert other() is None and first(torch.randn(1, 4, 8, 8)).shape == (1, 6, 6, 6)
