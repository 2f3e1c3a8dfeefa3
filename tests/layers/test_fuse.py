"""Fused layers and the score threshold: the same detections, and a model that does not change."""

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.layers import PackedDeformConv2d, fuse, track_offsets
from dcnzoo.layers.forwards import replaced
from dcnzoo.openmmlab.fuse import BLOCKS, SAME, raise_threshold, view
from dcnzoo.openmmlab.models.dcn import DCNv2
from dcnzoo.ops._torch_private import FUSED_LAYERS, missing

from ..export.detectors import build, calibrate, config, has_dcn
from ..export.detectors import predict_batch as predict

FAMILIES = ("Mask R-CNN", "RetinaNet", "Deformable DETR", "YOLOX", "InternImage")
LEAST_FUSED = {"Mask R-CNN": 19, "RetinaNet": 19, "Deformable DETR": 26, "YOLOX": 60, "InternImage": 26}
SIZE = (160, 192)
SHAPES = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(fuse, "LEAST_PIXELS", 1)
    monkeypatch.setattr(fuse, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr("dcnzoo.openmmlab.detector.LEAST_FUSED", 1)


@pytest.fixture
def computed(monkeypatch):
    """The types of the maps that oneDNN's convolution gets."""
    types, convolve = [], fuse.private.conv_pointwise
    record = lambda call: lambda x, *rest: types.append(x.dtype) or call(x, *rest)  # noqa: E731
    recorded = record(convolve)
    recorded.binary = record(convolve.binary)
    monkeypatch.setattr(fuse.private, "conv_pointwise", recorded)
    return types


def small_detector(family: str) -> nn.Module:
    if family != "InternImage":
        detector = build(family, has_dcn(family))
    else:
        torch.manual_seed(0)
        cfg = config("Mask R-CNN")
        cfg.backbone = dict(
            type="InternImage", channels=32, depths=(1, 1, 1), groups=(2, 4, 8), out_indices=(0, 1, 2)
        )
        detector = MODELS.build(cfg).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the identity
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.8, 1.25)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1)
    calibrate(detector, torch.randn(2, 3, *SIZE))
    return detector


def fused(model: nn.Module) -> Callable:
    return dcnzoo.fused(model, BLOCKS, SAME)


@torch.no_grad()
def maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return list(model.extract_feat(images))


def assert_same_bits(one, other):
    for name in ("boxes", "scores", "labels", "masks"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize(
    ("family", "order"),
    [
        *((family, torch.channels_last) for family in FAMILIES),
        ("RetinaNet", torch.contiguous_format),
        *(
            pytest.param(family, torch.contiguous_format, marks=pytest.mark.slow)
            for family in FAMILIES
            if family != "RetinaNet"
        ),
    ],
)
def test_the_same_detections(family, order):
    model = small_detector(family).to(memory_format=order)
    images = torch.randn(2, 3, *SIZE)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = predict(model, images)
    forwards = fuse.Fuser(BLOCKS, SAME).forwards(model)
    assert len(forwards) >= LEAST_FUSED[family]
    exact = maps(model, images)
    with replaced(forwards), torch.no_grad():
        for one, other in zip(exact, maps(model, images), strict=True):
            assert (one - other).abs().max() <= 2e-5 * one.abs().max()
        results = predict(model, images)
    for one, other in zip(before, results, strict=True):
        assert len(one) == len(other) >= 50
        # near ties may exchange their ranks
        distances = np.abs(one.boxes[:, None] - other.boxes).max(-1)
        near = (distances < 0.02) & (np.abs(one.scores[:, None] - other.scores) < 1e-3)
        near &= one.labels[:, None] == other.labels
        assert near.any(1).mean() >= 0.98
    for one, other in zip(before, predict(model, images), strict=True):  # the model itself: the same bits
        assert_same_bits(one, other)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def picture():
    return np.ascontiguousarray(np.kron(draw_image(ShapesSpec(), "val", 0)[0], np.ones((4, 4, 1), np.uint8)))


def test_trained_detector(picture, computed):
    plain, fused = (dcnzoo.load(SHAPES, fuse=on, device="cpu") for on in (False, True))
    assert "fuse=False" in repr(plain) and "fused layers" in repr(fused)
    for threshold in (0.05, 0.5):
        one, other = (detector(picture, bgr=True, score_threshold=threshold) for detector in (plain, fused))
        assert one.names == other.names and len(one) > 1
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert (one.masks == other.masks).mean() > 0.9999
    assert set(computed) == {torch.float32}
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        np.testing.assert_array_equal(twin(picture, bgr=True).boxes, fused(picture, bgr=True).boxes)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(fused(picture, bgr=True, max_detections=1).boxes, one.boxes[:1], atol=8)


@pytest.mark.parametrize("on", [True, False])
def test_a_detector_stores_what_a_forward_stores(picture, on):
    """As a model for videos, whose prediction depends on the frames before."""
    detector = dcnzoo.load(SHAPES, fuse=on, device="cpu")

    class Counts(type(detector.model.neck)):
        calls = 0

        def forward(self, maps):
            self.calls += 1
            if self.calls == 1:
                self.made, self.last = nn.Conv2d(1, 1, 1), self.fpn_convs[0]
            return super().forward(maps)

    detector.model.neck.__class__ = Counts
    settings = dict(vars(detector.model.rpn_head))
    for _ in range(2):
        detector(picture, bgr=True)
    detector.features(picture, bgr=True)
    neck = detector.model.neck
    assert neck.calls == 3 and vars(detector.model.rpn_head) == settings
    assert isinstance(neck.made, nn.Conv2d) and neck.last is neck.fpn_convs[0]


def test_without_the_private_operators(picture, monkeypatch):
    monkeypatch.setitem(missing, FUSED_LAYERS, "torch 9 has no such operator")
    one, other = (dcnzoo.load(SHAPES, device="cpu", fuse=fuse) for fuse in (True, False))
    assert "torch 9 has no such operator" in repr(one)
    np.testing.assert_array_equal(one(picture, bgr=True).boxes, other(picture, bgr=True).boxes)


@pytest.mark.parametrize("multiplies", [True, False])
def test_bfloat16(picture, multiplies, computed, monkeypatch):
    """oneDNN raises an error for bfloat16 on CPUs without AVX-512."""
    multiplies = multiplies and fuse.private.multiplies_bfloat16()
    monkeypatch.setattr(fuse.private, "multiplies_bfloat16", lambda: multiplies)
    plain, mixed = (dcnzoo.load(SHAPES, device="cpu", precision=name) for name in ("float32", "bf16"))
    assert "bf16" in repr(mixed)
    types = []
    heads = (mixed.model.rpn_head.rpn_cls, mixed.model.roi_head.mask_head.conv_logits)
    for layer in heads:
        layer.register_forward_hook(lambda module, x, y: types.append((x[0].dtype, y.dtype)))
    one, other = (detector(picture, bgr=True, score_threshold=0.6) for detector in (plain, mixed))
    assert (torch.bfloat16 in computed) == multiplies
    assert types[0] == (torch.bfloat16, torch.float32), "the scores of boxes are float32"
    assert types[-1] == (torch.bfloat16, torch.bfloat16), "the masks are not"
    assert one.names == other.names
    assert 0 < np.abs(one.boxes - other.boxes).max() < 8
    with pytest.raises(ValueError, match="precision: expected float32 or bf16, got 'int8'"):
        dcnzoo.load(SHAPES, device="cpu", precision="int8")


@pytest.mark.parametrize(
    "layers",
    [
        [
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            nn.BatchNorm2d(6, affine=False),
            nn.LeakyReLU(0.3),
        ],
        [nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6)],
        [nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.SiLU()],
        [nn.Conv2d(4, 6, 1), nn.SiLU(), nn.BatchNorm2d(6)],
        [nn.Conv2d(4, 6, 1), nn.GroupNorm(2, 6), nn.ReLU()],
        [PackedDeformConv2d(4, 6, 3, padding=1, modulated=True), nn.BatchNorm2d(6), nn.SiLU()],
        [PackedDeformConv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()],
        [nn.Flatten(2), nn.Linear(63, 5), nn.GELU("tanh"), nn.Linear(5, 3), nn.BatchNorm1d(4)],
        [nn.Conv2d(4, 6, 1).double(), nn.BatchNorm2d(6).double()],
    ],
)
def test_layers(layers):
    model = nn.Sequential(*layers).eval()
    predict = dcnzoo.fused(model)
    dtype = next(model.parameters()).dtype
    for batch in (2, 0):
        x = torch.randn(batch, 4, 7, 9, dtype=dtype)
        with torch.no_grad():
            torch.testing.assert_close(predict(x), model(x))


@pytest.mark.parametrize("number", [1, 2])
def test_a_layer_that_trains_in_a_model_in_evaluation(number):
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Dropout()).eval()
    model[number].train()
    expected, x = copy.deepcopy(model), torch.randn(2, 4, 7, 9)
    outputs = []
    for network in (expected, dcnzoo.fused(model)):
        torch.manual_seed(0)
        outputs.append(network(x))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(model[1].running_mean, expected[1].running_mean)


def test_residual_blocks():
    """The sum is part of the last convolution, and no map that others may have kept is overwritten."""
    model = nn.Sequential(block(8, stride=1), block(8, stride=2), nn.Identity(), block(8, stride=1))
    x = torch.randn(2, 32, 9, 7).to(memory_format=torch.channels_last)
    given = x.clone()
    forwards = fuse.Fuser(BLOCKS, SAME).forwards(model)  # which judges torch's own ReLU
    unfused = mock.patch.object(nn.ReLU, "forward", lambda *_: pytest.fail("not fused"))
    with torch.no_grad(), unfused, replaced(forwards):
        result = model(x)
    with torch.no_grad():
        torch.testing.assert_close(result, model(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, given)


def test_hooks_for_all_modules_are_called():
    model = nn.Sequential(block(8, stride=1), block(8, stride=1)).eval()
    x = torch.randn(2, 32, 9, 7).to(memory_format=torch.channels_last)
    outputs = []
    hook = register_module_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        counts = []
        for network in (model, fused(model)):
            outputs.clear()
            with torch.no_grad():
                network(x)
            counts.append(len(outputs))
    finally:
        hook.remove()
    assert counts[0] == counts[1] > 10


def test_a_patch_reaches_fused_layers(monkeypatch):
    """The switch between mmcv's kernels and dcnzoo's is in the layer's own method."""
    model = nn.Sequential(DCNv2(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()).eval()
    x = torch.randn(1, 4, 7, 9)
    plain = lambda layer, x, *_: nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)  # noqa: E731
    monkeypatch.setattr(DCNv2, "_convolve", plain)
    nn.init.normal_(model[0].conv_offset.weight)
    with torch.no_grad():
        torch.testing.assert_close(fused(model)(x), model(x), rtol=1e-4, atol=1e-5)


def block(channels: int, stride: int) -> Bottleneck:
    downsample = nn.Sequential(nn.Conv2d(32, 32, 1, stride), nn.BatchNorm2d(32)) if stride > 1 else None
    return Bottleneck(32, channels, stride, downsample=downsample).eval()


def test_offsets_in_float32_under_autocast():
    pack = PackedDeformConv2d(4, 6, 3, padding=1, float32_offsets=True)
    model, types = nn.Sequential(pack, nn.BatchNorm2d(6), nn.ReLU()).eval(), []
    pack.conv_offset.register_forward_pre_hook(lambda module, args: types.append(args[0].dtype))
    x = torch.randn(1, 4, 7, 9)
    x[0, 0, 0, 0] = 1 + 2**-20
    pack.conv_offset.register_forward_pre_hook(lambda module, args: types.append(args[0].amax(0)[0, 0, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        fused(model)(x)
    assert types == [torch.float32, x[0, 0, 0, 0]]


def test_hooks_and_statistics_are_called():
    model = nn.Sequential(PackedDeformConv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()).eval()
    calls = []
    model[1].register_forward_hook(lambda module, args, output: calls.append(module))
    track_offsets(model)
    dcnzoo.fused(model)(torch.randn(1, 4, 7, 9))
    assert len(calls) == 1 and model[0]._last_offsets is not None


@pytest.mark.parametrize(("family", "masks"), [("Mask R-CNN", True), ("FCOS", False), ("YOLOX", False)])
def test_threshold_reaches_nms(family, masks):
    model = build(family, has_dcn(family))
    images = torch.randn(2, 3, *SIZE)
    before = predict(model, images)
    threshold = float(np.sort(np.concatenate([result.scores for result in before]))[-20])
    copies = view(model)
    raise_threshold(copies, threshold)
    results = predict(copies[model], images)
    assert family == "FCOS" or sum(map(len, results)) < sum(map(len, before))  # its centerness comes later
    for one, other in zip(before, results, strict=True):
        one, other = one[one.scores >= threshold], other[other.scores >= threshold]
        assert (other.masks is not None) == masks
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=1.3e-6, atol=1e-5)
        assert np.array_equal(one.scores, other.scores) and np.array_equal(one.labels, other.labels)
    for one, other in zip(before, predict(model, images), strict=True):
        assert np.array_equal(one.scores, other.scores)


def test_threshold_leaves_heads_whose_scores_rise():
    model = build("Mask Scoring R-CNN")
    copies = view(model)
    raise_threshold(copies, 0.9)
    assert copies[model.roi_head].test_cfg is model.roi_head.test_cfg


class Residual(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.activation = nn.Conv2d(4, 4, 1), activation

    def forward(self, x, other):
        return self.activation(self.conv(x) + other)


@pytest.mark.parametrize(("activation", "dtype"), [(nn.SiLU(), None), (nn.ReLU(), torch.bfloat16)])
def test_a_sum_keeps_its_type_and_takes_each_activation(activation, dtype):
    """Of a residual in float32 under autocast."""
    block = Residual(activation).to(memory_format=torch.channels_last)
    fused = fuse.Fuser(BLOCKS, SAME).fused_layer(block.conv, activation=block.activation)
    x = torch.randn(1, 4, 5, 6).to(memory_format=torch.channels_last)
    other = 1e5 * torch.randn(1, 4, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        torch.testing.assert_close(fused(x, other), block(x, other))


def test_a_network_that_changes_itself():
    """Modules that no other module has, modules of the first call, and errors: as in the model itself."""

    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 1)
            self.listed, self.calls = [self.layer], 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 1:
                self.made = nn.Conv2d(2, 2, 1)
                self.used = [self.listed[0]]
                raise ValueError
            return self.made(self.layer(x)) + self.used[0](x)

    model, x = nn.Sequential(Grows(), nn.ReLU()).eval(), torch.randn(1, 2, 5, 6)
    predict = dcnzoo.fused(model)
    with pytest.raises(ValueError):
        predict(x)
    torch.testing.assert_close(predict(x), model(x).detach())
    assert model[0].calls == 3 and model[0].used == [model[0].layer]
    assert not any("forward" in vars(module) for module in model.modules())


def test_threads_decide_for_themselves():
    """A call of the model itself beside a call with fused layers, and a later one with a hook."""
    calls, inside, outside = [], threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                assert outside.wait(60)
            return x

    model = nn.Sequential(Waits(), nn.Conv2d(2, 3, 1), nn.ReLU()).eval()
    predict, x = dcnzoo.fused(model), torch.randn(1, 2, 5, 6)
    expected = model(x).detach()
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(predict, x)
        assert inside.wait(60)
        assert torch.equal(model(x), expected)
        with mock.patch.object(fuse.private, "conv_pointwise", side_effect=AssertionError):
            model(x)
            with pytest.raises(AssertionError):
                predict(x)
        model[2].register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(predict(x), expected)
        outside.set()
        torch.testing.assert_close(later.result(), expected)
    assert len(calls) == 1 and not any("forward" in vars(module) for module in model.modules())


def layers_of(width: int = 64) -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    nn.init.uniform_(network[1].running_mean, -1, 1)
    return network.eval()


class Adapts(nn.Module):
    """Normalises with the statistics of its input, as adaptation to another domain does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers_of()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.net[1].train()
        y = self.net(x)
        self.net[1].eval()
        return y


class Doubled(torch.Tensor):
    """A tensor that changes what torch's convolution computes."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 2 if function is torch.nn.functional.conv2d or function is torch.conv2d else result


class Doubles(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 2 if function is torch.conv2d else result


def test_a_forward_that_trains_a_part_and_tensors_of_another_class():
    x = torch.randn(2, 64, 16, 13)
    model = Adapts().eval()
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(dcnzoo.fused(model)(x), expected)
    network, other = layers_of(), x.as_subclass(Doubled)
    torch.testing.assert_close(dcnzoo.fused(network)(other), network(other))
    with Doubles():
        torch.testing.assert_close(dcnzoo.fused(network)(x), network(x))


def test_a_call_with_fake_tensors_or_in_vmap_leaves_nothing_behind():
    network, x = layers_of(24), torch.randn(2, 24, 16, 13)
    predict = dcnzoo.fused(network)
    with FakeTensorMode(allow_non_fake_inputs=True):
        predict(x)
    torch.testing.assert_close(torch.vmap(predict)(x[None])[0], network(x))
    for _ in range(2):
        torch.testing.assert_close(predict(x), network(x))
    with FlopCounterMode(display=False) as counter, FlopCounterMode(display=False) as expected:
        predict(x)
    network(x)
    assert counter.get_total_flops() == expected.get_total_flops() == 2 * 24 * 24 * 9 * 2 * 16 * 13


def test_a_network_with_fused_layers_can_exchange_its_weights():
    network, x = layers_of(), torch.randn(1, 64, 16, 13)
    predict = dcnzoo.fused(network)
    predict(x)
    torch.utils.swap_tensors(network[0].weight, nn.Parameter(torch.randn(64, 64, 3, 3)))
    torch.testing.assert_close(predict(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda run, net: run(torch.randn(1, 63, 9, 8)),  # another width
        lambda run, net: run(torch.randn(1, 64, 9, 8, dtype=torch.float64)),
        lambda run, net: net.__setitem__(1, nn.BatchNorm2d(1).eval()) or run(torch.randn(1, 64, 9, 8)),
    ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_what_the_model_refuses(call, mixed):
    network = layers_of()
    for run in (network, dcnzoo.fused(network)):
        with torch.autocast("cpu", enabled=mixed), pytest.raises(RuntimeError):
            call(run, network)


def test_a_convolution_takes_no_other_map():
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x, x)

    with pytest.raises(TypeError, match="positional argument"):
        dcnzoo.fused(Sums().eval())(torch.randn(1, 8, 9, 8).contiguous(memory_format=torch.channels_last))


def test_hooks_of_a_convolution_alone_in_its_block():
    module, called = ConvModule(8, 8, 1, act_cfg=None).eval(), []
    module.conv.register_forward_hook(lambda *_: called.append(1))
    dcnzoo.fused(module, BLOCKS, SAME)(torch.randn(1, 8, 9, 7))
    assert called == [1]


def test_only_modules_are_fused():
    with pytest.raises(TypeError, match="got function"):
        dcnzoo.fused(lambda x: x)


def test_a_copy_that_a_forward_makes_can_be_converted():
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = layers_of()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            copies.append(copy.deepcopy(self.net))
            return self.net(x)

    copies: list[nn.Module] = []
    dcnzoo.fused(Copies().eval())(torch.randn(1, 64, 9, 8))
    assert not any("forward" in vars(module) for module in copies[0].modules())
    assert [*dcnzoo.to_deformable(copies[0], "0").replaced] == ["0"]


class Elastic(nn.Sequential):
    depth = 3

    def __iter__(self):
        return iter(list(self._modules.values())[: self.depth])


class Sets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Elastic(nn.Conv2d(4, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3))
        self.changes: list[tuple] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part, name, value in self.changes:
            setattr(self.net[part] if isinstance(part, int) else self.net, name, value)
        return self.net(x)


@pytest.mark.parametrize(
    "change", [(1, "negative_slope", 0.9), (0, "padding_mode", "reflect"), ("net", "depth", 1)]
)
def test_attributes_that_a_forward_sets(change):
    model, x = Sets().eval(), torch.randn(1, 4, 9, 8)
    original, predict = copy.deepcopy(model), dcnzoo.fused(model)
    before = predict(x)
    model.changes = original.changes = [change]
    torch.testing.assert_close(predict(x), expected := original(x).detach())
    assert expected.shape != before.shape or not torch.allclose(expected, before)


def test_nested_tensors():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    x = torch.nested.nested_tensor([torch.randn(5, 8), torch.randn(3, 8)], layout=torch.strided)
    torch.testing.assert_close(dcnzoo.fused(model)(x).unbind(), model(x).detach().unbind())


class Force(nn.Module):
    """The derivative of an energy, as of networks that predict forces."""

    def __init__(self) -> None:
        super().__init__()
        self.net = layers_of(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            return torch.autograd.grad((x + self.net(x)).square().sum(), x)[0]


def test_a_forward_that_differentiates():
    model, x, called, layers = Force().eval(), torch.randn(2, 32, 16, 13), [], layers_of(32)
    torch.testing.assert_close(dcnzoo.fused(model)(x), model(x))
    model.net[1].register_full_backward_hook(lambda *_: called.append(1))
    dcnzoo.fused(model)(x)
    assert called == [1]
    with torch.no_grad(), forward_ad.dual_level():  # which no_grad does not end
        x = forward_ad.make_dual(x, torch.randn_like(x))
        slopes = [forward_ad.unpack_dual(run(x)).tangent for run in (layers, dcnzoo.fused(layers))]
        torch.testing.assert_close(*slopes)


def test_a_model_that_is_converted_in_a_fused_call_uses_its_layers():
    network = layers_of()
    with replaced({network[0]: network[0].forward}):
        dcnzoo.to_deformable(network, "0")
    network.train()(torch.randn(1, 64, 9, 8)).sum().backward()
    assert network[0].conv_offset.weight.grad is not None
