"""Methods that rebuild convolutions for inference, as in RepVGG, LeViT and YOLO: deformable layers stay."""

import copy
import gc
import importlib
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import dcnzoo
from dcnzoo.layers import PackedDeformConv2d, rebuilding


def rebuilt(conv, norm):
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    weights = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    new.weight, new.bias = weights
    return new


class ConvNorm(nn.Sequential):
    """As in LeViT: ``fuse`` returns a new module."""

    def __init__(self, channels=4):
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self[1].running_mean.normal_()

    def fuse(self):
        return rebuilt(*self)


class Branches(nn.Module):
    """As in RepViT: relies on the result of its children's ``fuse``."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = ConvNorm(), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x) + self.other(x)

    def fuse(self):
        conv = self.conv.fuse()
        conv.weight.data += nn.functional.pad(self.other.weight.data, [1] * 4)
        conv.bias.data += self.other.bias.data
        return conv


class Block(nn.Module):
    """As in RepVGG: changes itself."""

    def __init__(self):
        super().__init__()
        self.branch, self.fused = ConvNorm(), None

    def forward(self, x):
        return (self.branch if self.fused is None else self.fused)(x)

    def switch_to_deploy(self):
        self.fused = rebuilt(*self.branch)
        for parameter in self.parameters():
            parameter.detach_()
        del self.branch


class Collapsing(Block):
    collapse = Block.switch_to_deploy


class Network(nn.Module):
    """As in YOLOv5: a method of the network handles all blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Branches(), ConvNorm())

    def forward(self, x):
        return self.blocks(x)

    def fuse(self, verbose=True):
        self.blocks[0].switch_to_deploy()
        for number in (1, 2):
            self.blocks[number] = self.blocks[number].fuse()
        return self


def converted(where):
    torch.manual_seed(0)
    network = Network().eval()
    report = dcnzoo.to_deformable(network, where)
    for module in network.modules():
        if isinstance(module, PackedDeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.2)
    return network, report


def reparameterise(model):
    """As timm does: every child that has such a method, then its children."""
    for name, child in model.named_children():
        if hasattr(child, "fuse"):
            child = child.fuse()
            setattr(model, name, child)
        elif hasattr(child, "switch_to_deploy"):
            child.switch_to_deploy()
        reparameterise(child)
    return model


@pytest.mark.parametrize("function", [lambda network: network.fuse(verbose=False), reparameterise])
@pytest.mark.parametrize("where", ["blocks.0.branch.0", "blocks.1.conv.0", "blocks.2.0", "*.0"])
@pytest.mark.parametrize("change", [lambda n: n, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_deformable_layers_stay(function, where, change):
    network, report = converted(where)
    network = change(network)
    x = torch.randn(2, 4, 7, 9)
    before = network(x)
    handles = [module.register_forward_hook(lambda *_: None) for module in network.modules()]
    with pytest.warns(UserWarning, match="would replace deformable layers"):
        function(network)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in copy.deepcopy(network.blocks).modules())
    torch.testing.assert_close(network(x), before)
    report.check(network)
    packs = [network.get_submodule(name) for name in report.replaced]
    assert all(parameter.requires_grad for pack in packs for parameter in pack.parameters())


def test_other_blocks_are_rebuilt():
    network, _ = converted("blocks.0.branch.0")
    with pytest.warns(UserWarning, match=r"Block\.switch_to_deploy: .*branch\.0"):
        reparameterise(network)
    assert type(network.blocks[2]) is nn.Conv2d


def test_a_method_that_keeps_the_layer_runs():
    class Kept(ConvNorm):
        def fuse(self):
            self[0].weight.data *= 2
            self[1] = nn.Identity()
            return self

    model = nn.Sequential(Kept())
    model[0].append(nn.Conv2d(4, 4, 3, padding=1))
    dcnzoo.to_deformable(model, ["0.0", "0.2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[0].fuse()
    assert isinstance(model[0][1], nn.Identity) and isinstance(model[0][0], PackedDeformConv2d)


class Parallel(Branches):
    """As RepVGGDW of Ultralytics: adds the other kernel to the layer itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if self.other is None else super().forward(x)

    def fuse(self):
        self.conv.weight.data += nn.functional.pad(self.other.weight.data, [1] * 4)
        self.conv.bias.data += self.other.bias.data
        self.other = None


class Preceded(Parallel):
    """Merges the layer before it into the kernel: the offsets would be predicted from another input."""

    def fuse(self, *args, **kwargs):
        factors, self.other = self.other.weight[..., 0, 0].diagonal(), nn.Identity()
        self.conv.weight.data *= factors[None, :, None, None]

    def forward(self, x):
        if isinstance(self.other, nn.Conv2d):
            x = x * self.other.weight[..., 0, 0].diagonal()[None, :, None, None]
        return self.conv(x)


class Flipped(Parallel):
    def merge_kernel(self):
        self.conv.weight.data, self.other = self.conv.weight.data.flip(-1), None

    def fuse(self):
        self.merge_kernel()

    def forward(self, x):
        return self.conv(x) if self.other is None else self.conv(x.flip(-1)).flip(-1)


@pytest.mark.parametrize("block", [Parallel, Preceded, Flipped])
def test_a_method_that_changes_kernels(block):
    model, x = nn.Sequential(block()), torch.randn(1, 4, 7, 9)
    dcnzoo.to_deformable(model, "0.conv")
    nn.init.normal_(model[0].conv.conv_offset.weight)
    before, state = model(x), torch.get_rng_state()
    with pytest.warns(UserWarning, match="would replace deformable layers"):
        getattr(model[0], "merge_kernel", model[0].fuse)()
    torch.testing.assert_close(model(x), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_method_that_takes_maps_is_left_alone(monkeypatch):
    class Neck(ConvNorm):
        def fuse(self, x=None, other=None):
            return other if x is None else x + other

        def forward(self, x):
            return self.fuse(super().forward(x), x)

    model, x = nn.Sequential(Neck()), torch.randn(1, 4, 7, 9)
    expected = model.eval()(x)
    dcnzoo.to_deformable(model, "0.0")
    monkeypatch.setattr(rebuilding, "_copied", None)
    torch.testing.assert_close(model(x), expected)
    torch.compile(model, backend="eager", fullgraph=True)(x)
    assert model[0].fuse(other=x) is x


def test_check_names_what_was_lost():
    network, report = converted(["blocks.0.branch.0", "blocks.2.0"])
    report.check(network)
    network.blocks[2] = rebuilt(*network.blocks[2])
    with pytest.raises(RuntimeError, match=r"2 converted layers, got others for 'blocks\.2\.0'$"):
        report.check(network)


def test_errors_of_the_method_itself_are_raised():
    class Failing(ConvNorm):
        def fuse(self):
            self[0] = nn.Identity()
            raise KeyError("the user's own mistake")

    model = nn.Sequential(Failing())
    dcnzoo.to_deformable(model, "0.0")
    with pytest.raises(KeyError, match="own mistake"):
        model[0].fuse()


def test_a_module_that_cannot_be_copied_stays():
    model = nn.Sequential(ConvNorm())
    dcnzoo.to_deformable(model, "0.0")
    model[0].lock = threading.Lock()
    with pytest.warns(UserWarning, match="cannot be tried on a copy"):
        assert model[0].fuse() is model[0]


def test_a_method_that_a_forward_calls_computes():
    class Neck(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            self.features = [self.a(x), self.b(x)]
            return self.fuse()

        def fuse(self):
            calls.append(1)
            return self.features[0] + self.features[1]

    calls, model, x = [], nn.Sequential(Neck()), torch.randn(1, 4, 9, 8)
    expected = model(x)
    dcnzoo.to_deformable(model, "*.a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            torch.testing.assert_close(model(x), expected)
    assert len(calls) == 5  # one of them on a copy


def replace_conv(block):
    block.conv, block.other = rebuilt(block.conv, nn.BatchNorm2d(4).eval()), None


@pytest.mark.parametrize("fuse", [replace_conv, Parallel.fuse])
def test_deformable_layers_stay_in_a_forward_that_fuses(fuse):
    class Lazy(Parallel):
        def forward(self, x):
            if not self.training:
                self.fuse()
            return super().forward(x)

        def fuse(self):
            calls.append(1)
            fuse(self)

    calls, model, x = [], nn.Sequential(Lazy()), torch.randn(2, 4, 9, 8)
    dcnzoo.to_deformable(model, "*.conv")
    nn.init.normal_(model[0].conv.conv_offset.weight)
    expected = model(x)
    for _ in range(3):
        with pytest.warns(UserWarning, match="would replace deformable layers .*: conv"):
            torch.testing.assert_close(model.eval()(x), expected)
    assert len(calls) <= 2  # on copies, in the first forward


def test_undoing_a_conversion_leaves_nothing():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x)

        def fuse(self):
            pass

    model = nn.Sequential(Block())
    before = [{*vars(module)} for module in model.modules()]
    dcnzoo.to_deformable(model, "*.conv")
    dcnzoo.from_deformable(model)
    assert [{*vars(module)} for module in model.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class YoloLike(nn.Module):
    """A method of the network replaces convolutions in all its parts."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(ConvNorm(), ConvNorm())

    def forward(self, x):
        return self.backbone(x)

    def fuse(self):
        for number, block in enumerate(self.backbone):
            if number:
                self.backbone[number] = rebuilt(*block)
            else:
                block[0], block[1] = rebuilt(*block), nn.Identity()


@pytest.mark.parametrize("change", [lambda n: n, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_convolution_that_replaces_a_deformable_layer(change):
    network = YoloLike().eval()
    dcnzoo.to_deformable(network.backbone, "*.0")
    with pytest.warns(UserWarning) as warned:
        change(network).fuse()
    names = [name for name in ("'0'", "'1.0'") for warning in warned if name in str(warning.message)]
    assert names == ["'0'", "'1.0'"] and len(warned) == 2
    network = YoloLike()
    dcnzoo.to_deformable(network, "*.0")
    with warnings.catch_warnings():  # no program that fuses does this
        warnings.simplefilter("error")
        network.backbone[0] = nn.Identity()
        network.missing = None
        network.missing = nn.Conv2d(4, 4, 3)
        dcnzoo.from_deformable(network)
        network.backbone[1][0] = nn.Conv2d(4, 4, 3)


def test_a_convolution_that_replaces_a_layer_that_a_user_placed():
    network = YoloLike().eval()
    network.backbone[0][0] = PackedDeformConv2d(4, 4, 3, padding=1)
    with pytest.warns(UserWarning, match=r"ConvNorm: a convolution replaces the deformable layer '0'"):
        network.fuse()


@pytest.mark.parametrize("change", [lambda n: n, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_convolution_with_another_name_that_replaces_a_layer(change):
    model = nn.Sequential(Collapsing().eval())
    dcnzoo.to_deformable(model[0].branch, "0")
    model(torch.randn(1, 4, 7, 9)), model.train()(torch.randn(2, 4, 7, 9)), model.eval()
    model = change(model)
    with pytest.warns(UserWarning, match=r"Collapsing: a convolution replaces .* 'branch\.0'"):
        model[0].collapse()
        gc.collect()  # guarded modules are in a cycle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = YoloLike()
        network.backbone[0][0] = PackedDeformConv2d(4, 4, 3, padding=1)
        network.backbone[0].append(nn.Conv2d(4, 4, 3, padding=1))
        dcnzoo.from_deformable(network)
        network.backbone[1][0] = PackedDeformConv2d(4, 4, 3, padding=1)
        network.backbone[1].append(nn.Conv2d(4, 4, 3, padding=1))
        del network
        gc.collect()


def test_a_layer_that_is_deleted_before_the_first_forward():
    class Merging(Parallel):
        def train(self, mode=True):
            if not mode and hasattr(self, "conv"):
                self.merged = nn.Conv2d(4, 4, 3, padding=1)
                del self.conv
            return super().train(mode)

        def forward(self, x):
            return self.merged(x) if hasattr(self, "merged") else self.conv(x)

    model = nn.Sequential(Merging())
    dcnzoo.to_deformable(model, "0.conv")
    with pytest.warns(UserWarning, match=r"Merging: a convolution replaces the deformable layer 'conv'"):
        model.eval()(torch.randn(1, 4, 7, 9))


def test_a_method_of_a_module_that_nothing_else_refers_to():
    network = YoloLike().eval()
    dcnzoo.to_deformable(network, "backbone.*.0")
    with pytest.warns(UserWarning, match=r"YoloLike\.fuse: .* does nothing"):
        copy.deepcopy(network).fuse()


def test_a_first_forward_of_a_layer_that_another_module_reads():
    class Reader(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return nn.functional.conv2d(x, self.base.weight, self.base.bias)

    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    dcnzoo.to_deformable(model, "0")
    model[0] = Reader(model[0])
    with pytest.warns(UserWarning, match="in training .*, got layers that are not called: '0'"):
        model(torch.randn(1, 4, 7, 9))


def test_a_guarded_method_in_an_export():
    class Neck(ConvNorm):
        def fuse_scales(self):
            return 2

        def forward(self, x):
            return super().forward(x) * self.fuse_scales()

    model, x = nn.Sequential(Neck()).eval(), torch.randn(1, 4, 7, 9)
    dcnzoo.to_deformable(model, "0.0")
    exported = torch.export.export(model, (x,), strict=False).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(exported(x), model(x))


def test_a_network_that_merges_weights_in_eval():
    class Merging(ConvNorm):
        def train(self, mode=True):
            super().train(mode)
            if not mode and isinstance(self[1], nn.BatchNorm2d):
                self[0], self[1] = rebuilt(*self), nn.Identity()
            return self

    x, model = torch.randn(2, 4, 7, 9), nn.Sequential(Merging())
    with (
        pytest.raises(RuntimeError, match=r"in evaluation .*, got layers that are not called: .0\.0."),
        pytest.warns(UserWarning, match="a convolution replaces the deformable layer"),
    ):
        dcnzoo.to_deformable(model, "*.0", example=x)
    assert type(model[0][0]) is nn.Conv2d


def test_methods_of_an_instance_stay():
    model = nn.Sequential(ConvNorm())
    model[0].merge = model[0].fuse = lambda: "own"
    dcnzoo.to_deformable(model, "0.0")
    assert model[0].merge() == model[0].fuse() == "own"
    dcnzoo.from_deformable(model)
    assert model[0].merge() == model[0].fuse() == "own"


def test_a_method_that_takes_objects_runs_once():
    class Neck(ConvNorm):
        def fuse_levels(self, state=None):
            state.x += 1
            return state

        def forward(self, state):
            return super().forward(self.fuse_levels(state).x)

    class State:
        x = torch.zeros(1, 4, 7, 9)

    model, state = nn.Sequential(Neck()), State()
    dcnzoo.to_deformable(model, "0.0")
    model(state)
    assert state.x.eq(1).all()


def test_mmcv_fuses_the_parts_around_a_deformable_layer():
    cnn = pytest.importorskip("mmcv.cnn")
    layers = (
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
    )
    model, x = (
        nn.Sequential(*layers, nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))),
        torch.randn(2, 4, 9, 8),
    )
    for norm in (model[1], model[4], model[5][1]):
        norm.running_mean.normal_()
    dcnzoo.to_deformable(model.eval(), "3")
    before, fuse = model(x), importlib.import_module("mmcv.cnn.utils").fuse_conv_bn
    for function in (cnn.fuse_conv_bn, fuse):
        torch.testing.assert_close(function(copy.deepcopy(model))(x), before)
    assert [type(part) for part in fuse(model)[1:5]] == [
        nn.Identity,
        nn.Conv2d,
        PackedDeformConv2d,
        nn.BatchNorm2d,
    ]
    assert isinstance(model[5][1], nn.Identity)
