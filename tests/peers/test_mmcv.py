"""dcnzoo against mmcv 2.1.0's compiled operators, on the CPU."""

import contextlib
import functools
import importlib
import random

import pytest
import torch
from mmdet.models.backbones import resnet
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn

import dcnzoo.models  # noqa: F401
from dcnzoo import ops
from dcnzoo.compat import mmcv as compat
from dcnzoo.compat.mmcv import _ext as stand_in
from dcnzoo.layers import OffsetConv2d

compiled = importlib.import_module("mmcv._ext")
mmcv_ops = importlib.import_module("mmcv.ops")
CASES = range(200)


@contextlib.contextmanager
def running_on(extension):
    """mmcv's layers and functions on the operators of ``extension``."""
    names = ("deform_conv", "modulated_deform_conv", "deform_roi_pool", "nms", "roi_align")
    modules = [importlib.import_module(f"mmcv.ops.{name}") for name in names]
    before = [module.ext_module for module in modules]
    for module in modules:
        module.ext_module = extension
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.ext_module = value


def assert_equal(got, want, tolerance=1e-5):
    """Within ``tolerance`` of the largest value, which is at least counted as 1."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if want.numel():
        error = (got - want).abs().max() / want.abs().max().clamp(min=1)
        assert error <= tolerance


def random_case(seed, modulated):
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype = choose.choice([torch.float32, torch.float64])

    def pair(*values):
        return choose.choice(values), choose.choice(values)

    groups, deform_groups = pair(1, 2, 4)
    batch, kernel = choose.randint(1, 5), pair(1, 2, 3)
    stride, padding, dilation = pair(1, 2, 3), pair(0, 1, 2), pair(1, 2)
    channels, out_channels = 4 * choose.randint(1, 3), 4 * choose.randint(1, 3)
    size = choose.randint(5, 14), choose.randint(5, 14)
    out = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    taps = kernel[0] * kernel[1] * deform_groups

    def normal(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=dtype) * scale).requires_grad_()

    reach = choose.choice([0.5, 2.0, 8.0])  # the last leaves the map often
    tensors = [
        normal(batch, channels, *size),
        normal(out_channels, channels // groups, *kernel, scale=0.3),
        normal(batch, 2 * taps, *out, scale=reach),
    ]
    if modulated:
        tensors.append(normal(batch, taps, *out))
        if choose.random() < 0.7:
            tensors.append(normal(out_channels))
    im2col_step = choose.choice([step for step in range(1, batch + 1) if batch % step == 0])
    return tensors, (stride, padding, dilation, groups), deform_groups, im2col_step


def outputs_and_gradients(function, tensors):
    output = function()
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output, *torch.autograd.grad((output * weight).sum(), tensors)]


@pytest.mark.parametrize("seed", CASES)
def test_deform_conv(seed):
    tensors, geometry, deform_groups, step = random_case(seed, modulated=False)
    input, weight, offset = tensors

    def theirs():
        return mmcv_ops.deform_conv2d(input, offset, weight, *geometry, deform_groups, False, step)

    def ours():
        return ops.deform_conv2d(input, weight, offset, None, None, *geometry, step)

    with running_on(compiled):
        want = outputs_and_gradients(theirs, tensors)
    for got in (outputs_and_gradients(ours, tensors), outputs_and_gradients(theirs, tensors)):
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w)


@pytest.mark.parametrize("seed", CASES)
def test_modulated_deform_conv(seed):
    tensors, geometry, deform_groups, step = random_case(1000 + seed, modulated=True)
    input, weight, offset, mask, *bias = tensors
    bias = bias[0] if bias else None

    def theirs():
        return mmcv_ops.modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry, deform_groups)

    def ours():
        return ops.deform_conv2d(input, weight, offset, mask, bias, *geometry, step)

    with running_on(compiled):
        want = outputs_and_gradients(theirs, tensors)
    for got in (outputs_and_gradients(ours, tensors), outputs_and_gradients(theirs, tensors)):
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w)


@pytest.mark.parametrize("seed", CASES[:20])
def test_compat_functions(seed):
    """``dcnzoo.compat.mmcv``, argument for argument."""
    for offset in (0, 1000):
        tensors, geometry, deform_groups, step = random_case(offset + seed, modulated=offset > 0)
        if offset:
            input, weight, offsets, mask, *bias = tensors
            arguments = (input, offsets, mask, weight, bias[0] if bias else None, *geometry, deform_groups)
            functions = (mmcv_ops.modulated_deform_conv2d, compat.modulated_deform_conv2d)
        else:
            input, weight, offsets = tensors
            arguments = (input, offsets, weight, *geometry, deform_groups, False, step)
            functions = (mmcv_ops.deform_conv2d, compat.deform_conv2d)
        with running_on(compiled):
            want = outputs_and_gradients(functools.partial(functions[0], *arguments), tensors)
        got = outputs_and_gradients(functools.partial(functions[1], *arguments), tensors)
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w)


@pytest.mark.parametrize("name", ["DeformConv2dPack", "ModulatedDeformConv2dPack"])
def test_compat_packs(name):
    torch.manual_seed(0)
    arguments = (4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, 2)
    theirs, ours = (getattr(module, name)(*arguments) for module in (mmcv_ops, compat))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    input = torch.randn(3, 4, 9, 7)
    with running_on(compiled):
        want = outputs_and_gradients(lambda: theirs(input), list(theirs.parameters()))
    got = outputs_and_gradients(lambda: ours(input), list(ours.parameters()))
    for g, w in zip(got, want, strict=True):
        assert_equal(g, w)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 6), (6, 2)])
def test_compat_inputs_smaller_than_the_kernel(size):
    """mmcv pads them, offsets included; dcnzoo's operator has no need to."""
    torch.manual_seed(0)
    theirs, ours = (module.DeformConv2d(4, 6, 3, padding=1, deform_groups=2) for module in (mmcv_ops, compat))
    ours.load_state_dict(theirs.state_dict())
    tensors = [torch.randn(2, 4, *size).requires_grad_(), (torch.randn(2, 36, *size) * 2).requires_grad_()]
    with running_on(compiled):
        want = outputs_and_gradients(lambda: theirs(*tensors), tensors)
    for g, w in zip(outputs_and_gradients(lambda: ours(*tensors), tensors), want, strict=True):
        assert_equal(g, w)


def test_offsets_larger_than_the_output():
    """The memory that mmcv's kernels read is what dcnzoo's stand-in reads, gradients included."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(2, 4, 6, 5),
        torch.randn(2, 36, 9, 8) * 2,
        torch.rand(2, 18, 9, 8),
        torch.randn(6, 4, 3, 3),
        torch.randn(6),
    ]
    tensors = [t.requires_grad_() for t in tensors]

    def theirs():
        return mmcv_ops.modulated_deform_conv2d(*tensors, 1, 1, 1, 1, 2)

    def ours():
        return compat.modulated_deform_conv2d(*tensors, 1, 1, 1, 1, 2)

    with running_on(compiled):
        want = outputs_and_gradients(theirs, tensors)
    for function in (theirs, ours):
        for got, expected in zip(outputs_and_gradients(function, tensors), want, strict=True):
            assert_equal(got, expected)


def test_dyhead():
    torch.manual_seed(0)
    model = MODELS.build(dict(type="DyHead", in_channels=16, out_channels=16, num_blocks=2)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = [torch.randn(2, 16, *size) for size in ((25, 17), (13, 9), (7, 5))]
    with torch.no_grad():
        got = model(inputs)
        with running_on(compiled):
            want = model(inputs)
    for g, w in zip(got, want, strict=True):
        assert_equal(g, w)


def random_boxes(seed, count=60):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    size = torch.rand(count, 2, generator=generator) * 25 + 1
    return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(seed, offset):
    arguments = (*random_boxes(seed), 0.2 + 0.03 * seed, offset)
    assert stand_in.nms(*arguments).tolist() == compiled.nms(*arguments).tolist()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(seed, method, offset):
    boxes, scores = random_boxes(seed)
    results = []
    for extension in (stand_in, compiled):
        dets = boxes.new_zeros(len(boxes), 5)
        kept = extension.softnms(boxes, scores, dets, 0.3, 0.4, 0.05, method, offset)
        results.append((kept, dets[: len(kept)]))
    assert results[0][0].tolist() == results[1][0].tolist()
    assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("seed", range(10))
def test_nms_match(seed):
    boxes, scores = random_boxes(seed)
    dets = torch.cat([boxes, scores[:, None]], 1)
    assert stand_in.nms_match(dets, 0.3) == compiled.nms_match(dets, 0.3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(seed, pool_mode, sampling_ratio, aligned):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, 3, 15, 18, generator=generator).requires_grad_()
    boxes, _ = random_boxes(seed, 12)
    rois = torch.cat([torch.randint(2, (12, 1), generator=generator).float(), boxes], 1)

    def function():
        size, scale = (3, 4), 0.3
        return mmcv_ops.roi_align(input, rois, size, scale, sampling_ratio, pool_mode, aligned)

    with running_on(compiled):
        want = outputs_and_gradients(function, [input])
    with running_on(stand_in):
        got = outputs_and_gradients(function, [input])
    for g, w in zip(got, want, strict=True):
        assert_equal(g, w)


def mask_rcnn(backbone, pack):
    cfg = get_config("mmdet::dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py").model
    cfg.backbone.update(type=backbone, init_cfg=None)
    cfg.backbone.dcn.type = pack
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(cfg)


def losses_and_gradients(detector, data):
    torch.manual_seed(1)  # RoIs are sampled at random
    loss, logged = detector.parse_losses(detector(**data, mode="loss"))
    loss.backward()
    gradients = {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in logged.items()}, gradients


class InDouble:
    """mmcv's compiled operators with one that takes float32 only given that."""

    def __getattr__(self, name):
        return getattr(compiled, name)

    @staticmethod
    def nms(boxes, scores, iou_threshold, offset):
        return compiled.nms(boxes.float(), scores.float(), iou_threshold, offset)


@pytest.fixture
def float64():
    """In float32 the order of nearly equal proposals, and with it the loss, hangs on rounding.

    What is left in float64: mmcv rounds coordinates to float32 for ``floorf``, so that a sample
    within 1e-6 before a pixel counts as beyond it, with another slope. None is in a small input.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_mask_rcnn_r50(float64):
    """MMDetection's mdconv config: all of mmcv against all of dcnzoo, from the same weights."""
    torch.manual_seed(0)
    ours = mask_rcnn("ResNet", "DCNv2")
    theirs = mask_rcnn(resnet.ResNet, mmcv_ops.ModulatedDeformConv2dPack)
    ours.init_weights()
    for module in ours.modules():
        if isinstance(module, OffsetConv2d):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.BatchNorm2d):  # the last of a block starts at zero
            nn.init.uniform_(module.weight, 0.2, 0.6)
    theirs.load_state_dict(ours.state_dict())
    data = demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_classes=80, with_mask=True)
    data = ours.data_preprocessor(data, training=True)
    with running_on(InDouble()):
        want = losses_and_gradients(theirs, data)
    with running_on(stand_in):
        got = losses_and_gradients(ours, data)
    assert got[0] == pytest.approx(want[0], rel=1e-9)
    assert set(got[1]) == set(want[1])
    assert any("conv_offset" in name for name in want[1])
    for name, gradient in want[1].items():
        error = (got[1][name] - gradient).abs().max() / gradient.abs().max()
        assert error <= 1e-9, name
