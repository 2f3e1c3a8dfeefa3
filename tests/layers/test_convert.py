"""``dcnzoo.to_deformable`` on networks of any kind."""

import copy
import dataclasses
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import dcnzoo
from dcnzoo.layers import DeformConv2d, MaskSigmoid, PackedDeformConv2d, track_offsets
from dcnzoo.layers.convert import replace_convolutions


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
    return "conv_offset" in name or "mask_activation" in name


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
        ("resnet", "v3", {"offset_groups": 2, "mask_groups": 2}),
        ("unet3d", "v3", {"prediction": "dense"}),
    ],
)
def test_output_is_unchanged_before_training(network, kind, options):
    model, where, input, count = build(network)
    expected, order = model(input), list(model.state_dict())
    parameters = dict(model.named_parameters())
    report = dcnzoo.to_deformable(model, where, kind, **options)
    assert len(report.replaced) == count and not report.refused
    assert (model(input) - expected).abs().max() <= 1e-5
    converted = dict(model.named_parameters())
    assert all(converted[name] is parameter for name, parameter in parameters.items())
    assert [name for name in model.state_dict() if not is_new(name)] == order


def test_v3_is_v2_with_a_softmax():
    kinds = []
    for options in (
        {"kind": "v3"},
        {"kind": "v2", "mask_activation": "softmax"},
        {"kind": "v3", "mask_activation": "sigmoid"},
    ):
        dcnzoo.to_deformable(model := nn.Sequential(nn.Conv2d(3, 4, 3)), "0", **options)
        kinds.append(repr(model))
    assert kinds[0] == kinds[1] != kinds[2]


def test_scripts_copies_and_round_trips():
    """test_programs.py tests the layers alone. Here, a transposed layer gets the size of its output."""
    model, where, input, count = build("unet3d")
    before = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    dcnzoo.to_deformable(model, where)
    missing, unexpected = model.load_state_dict(before, strict=False)  # the plain network's checkpoint
    assert len(missing) == 3 * count and not unexpected
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
    assert [*map(int, re.findall(r"\d+(?= (?:replaced|under|names))", str(report)))][:2] == [1, 2]
    assert str(report).count("parameters") == 1
    assert type(model["two"][0]) is nn.Conv2d and model["two"][0].weight is model["one"][0].weight


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


def test_an_invalid_option_is_named_first():
    """Not ``where``, which is valid."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    for where in ("0", "*"):
        with pytest.raises(ValueError, match=r"^to_deformable: offset_limit: .*, got -1$"):
            dcnzoo.to_deformable(model, where, offset_limit=-1)
    with pytest.raises(ValueError, match=r"^to_deformable: where: .*one tap"):
        dcnzoo.to_deformable(model, "1", offset_limit=-1)


def test_an_error_of_an_activation_is_passed_on():
    class Refusing(nn.Module):
        def forward(self, mask):
            raise ValueError("my activation: no")

    with pytest.raises(ValueError, match=r"^to_deformable: my activation: no$"):
        dcnzoo.to_deformable(nn.Sequential(nn.Conv2d(3, 4, 3)), "0", mask_activation=Refusing())


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Renamed(nn.Conv3d):
    """Takes other arguments than nn.Conv3d, like convolutions of torchvision and of Transformers."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    @staticmethod
    def get_downsample_stride(stride):
        return stride


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
    "Standardised, not": Standardised(4, 4, 3),
    "PackedDeformConv2d, not": PackedDeformConv2d(4, 4, 3),
    "DeformConv2d, not": DeformConv2d(4, 4, 3),
    "hooks": nn.LazyConv2d(4, 3),
    "backward hooks": changed(lambda module: module.register_full_backward_hook(print)),
    "forward pre hook": nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
    "parametrizations": parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    "'scale' of its own": changed(lambda module: module.register_buffer("scale", torch.ones(1))),
    "'alpha' of its own": changed(
        lambda module: module.register_parameter("alpha", nn.Parameter(torch.ones(1)))
    ),
    "'act' of its own": changed(lambda module: module.add_module("act", nn.ReLU())),
    "`forward` set on": changed(lambda module: setattr(module, "forward", print)),
    "one tap": nn.Conv2d(4, 4, 1),
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


def test_an_example_and_a_choice_by_identity():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    chosen = {model[1]}
    report = dcnzoo.to_deformable(
        model, lambda name, module: module in chosen, example=torch.randn(1, 3, 8, 8)
    )
    assert [*report.replaced] == ["1"]


def test_an_example_that_the_network_changes_in_place():
    class Normalised(nn.Conv2d):
        def forward(self, x):
            x -= 0.5
            return super().forward(x)

    model, example = nn.Sequential(Normalised(3, 4, 1), nn.Conv2d(4, 4, 3)), torch.rand(1, 3, 8, 8)
    before = example.clone()
    dcnzoo.to_deformable(model, "1", example=example)
    assert torch.equal(example, before)


def test_an_example_on_a_machine_with_several_gpus(monkeypatch, recwarn):
    """torch warns once for each process if its random numbers are kept for all GPUs by default."""
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
    dcnzoo.to_deformable(nn.Sequential(nn.Conv2d(3, 4, 3)), "0", example=torch.randn(1, 3, 8, 8))
    assert not recwarn.list


def test_a_wrapped_part_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.compile(nn.ReLU()))
    with pytest.raises(ValueError, match="expected an unwrapped model, got a OptimizedModule at '1'"):
        dcnzoo.to_deformable(model, "0")


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


def test_same_and_valid_padding():
    model = nn.Sequential(
        nn.Conv2d(3, 4, (5, 3), padding="same", dilation=(1, 2)), nn.Conv2d(4, 2, 2, padding="valid")
    )
    input = torch.randn(1, 3, 9, 8)
    expected = model(input)
    dcnzoo.to_deformable(model, "*")
    assert [pack.padding for pack in model] == [(2, 2), (0, 0)]
    torch.testing.assert_close(model(input), expected)


def test_without_values():
    """A network of fake tensors has no values, so that nothing can be probed."""
    with FakeTensorMode():
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
        dcnzoo.to_deformable(model, "0")
        assert model(torch.randn(1, 3, 5, 6)).shape == (1, 3, 5, 6)


def test_separable_prediction_of_a_depthwise_layer():
    separable = nn.Sequential(nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.Conv2d(64, 64, 1))
    report = dcnzoo.to_deformable(separable, "0", kind="v1", prediction="separable")
    added = 49 * 64 + 98 * 64 + 3 * 64 + 98  # depthwise, pointwise; biases and norm
    assert report.replaced["0"] == f"Conv2d → PackedDeformConv2d, +{added:,} parameters"
    x = torch.randn(1, 64, 9, 8)
    torch.testing.assert_close(
        separable[0](x), nn.functional.conv2d(x, separable[0].weight, separable[0].bias, padding=3, groups=64)
    )
    assert list(dcnzoo.to_deformable(nn.Sequential(separable, nn.Conv2d(4, 4, 3)), "*").replaced) == ["1"]


# Layers that the network does not use


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return nn.functional.conv2d(x, 2 * self.conv.weight, padding=1)


class Residual(Reader):
    """Its code depends on the class of the layer."""

    def forward(self, x):
        return self.conv(x) + (x if isinstance(self.conv, nn.Conv2d) else 0)


@pytest.mark.parametrize(
    ("block", "message"), [(Reader, "does not call 'conv'"), (Residual, "same output in evaluation")]
)
def test_an_example_shows_that_the_network_does_not_use_a_layer(block, message):
    dcnzoo.to_deformable(model := block(), "conv").check(model)
    before = repr(model := block())
    with pytest.raises(RuntimeError, match=message):
        dcnzoo.to_deformable(model, "conv", example=(torch.randn(2, 3, 6, 7),))
    assert repr(model) == before


@dataclasses.dataclass
class Output:
    map: torch.Tensor
    name: str = "x"


class Numbers(dict):
    """A class of outputs, as Transformers have them."""


class Headed(nn.Module):
    """Returns ``head(y, new)`` for a map y; ``new`` is whether the convolution is converted."""

    def __init__(self, head):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), head

    def forward(self, x):
        return self.head(self.conv(x), isinstance(self.conv, PackedDeformConv2d))


OUTPUTS = {
    "bool": lambda y, _: {"map": y, "positive": y.mean(1) > 0},
    "integers": lambda y, _: (y, y.argmax(1), torch.tensor(3), 3, None, "a"),
    "infinity": lambda y, _: y.masked_fill(y < 0, -torch.inf),
    "NaN": lambda y, _: [y, torch.where(y < 0, torch.nan, y), float("nan")],
    "zeros, nothing": lambda y, _: (y * 0, y[:0]),
    "dataclass": lambda y, _: Output(y),
    "dictionaries": lambda y, _: Numbers(maps={"a": [y, {"b": y.exp()}]}),
    "array": lambda y, _: y.float().numpy(),
    "random": lambda y, _: y + torch.randn_like(y) + torch.rand(()).item(),
    "fill": lambda y, _: torch.where(y < 0, -1e9, y),
    "complex": lambda y, _: torch.complex(y.float(), y.float().square()),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_of_an_example(output, dtype):
    model = Headed(OUTPUTS[output]).to(dtype)
    dcnzoo.to_deformable(model, "conv", example=torch.rand(2, 3, 6, 7, dtype=dtype) + 0.1)
    assert isinstance(model.conv, PackedDeformConv2d)


DIFFERENT = {  # name of the output that differs, or cannot be compared -> head
    "output['b'][1]": lambda y, new: {"a": y, "b": [y, y.masked_fill(y < 0, torch.inf) + 100 * new]},
    "output": lambda y, new: torch.cat([torch.full_like(y[:1], 1e12), y + new]),
    "output[1]": lambda y, new: [y, torch.full_like(y, torch.nan if new else 1.0)],
    "output['map']": lambda y, new: Output(y + new),
    "output['name']": lambda y, new: Output(y, name=str(new)),
    "output[2]": lambda y, new: (y, y, y)[: 3 - new],
    "output[3]": lambda y, new: (y, y, y, y.argmax(1) + new),
    "output[4]": lambda y, new: (y, y, y, y, y.half() if new else y),
    "output[5]": lambda y, new: (*[y] * 5, nn.Identity()),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_an_example_names_the_output_that_differs(name):
    model = Headed(DIFFERENT[name])
    with pytest.raises(RuntimeError, match=rf"^to_deformable: .*got .*{re.escape(name)}( of type|$)"):
        dcnzoo.to_deformable(model, "conv", example=torch.randn(2, 3, 6, 7))
    assert type(model.conv) is nn.Conv2d


def test_layers_that_others_replaced_are_named():
    report = dcnzoo.to_deformable(model := nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), "*")
    report.check(copy.deepcopy(model))
    model[1] = nn.Conv2d(3, 3, 3)
    with pytest.raises(RuntimeError, match="expected 2 converted layers, got others for '1'"):
        report.check(model)


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_that_are_used(network):
    model, where, x, _ = build(network, eval=False)
    before = copy.deepcopy(model.state_dict())
    report = dcnzoo.to_deformable(model, where, example=x)
    report.check(model)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(m._forward_hooks for m in model.modules())


def test_attributes_of_a_host_are_carried_over():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    model[0].f, model[0].i, model[0].type, model[0].lr_scale = -1, 0, "Conv", 0.1
    dcnzoo.to_deformable(model, "0")
    track_offsets(model)
    model(torch.randn(1, 3, 5, 5))
    assert (model[0].f, model[0].i, model[0].type, model[0].lr_scale) == (-1, 0, "Conv", 0.1)
