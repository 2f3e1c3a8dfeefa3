"""dcnzoo compared with mmcv 2.1.0's compiled operators on the CPU."""

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
from tests.op_cases import ramp
from tests.op_cases.deform_conv import make

compiled = importlib.import_module("mmcv._ext")
mmcv_ops = importlib.import_module("mmcv.ops")


@contextlib.contextmanager
def running_on(extension):
    """Run mmcv's layers and functions on the operators of ``extension``."""
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


def assert_equal(ours, theirs, tolerance=1e-5):
    """Compare tensors within ``tolerance`` of the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if b.numel():
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def random_case(seed, modulated):
    choose = random.Random(seed)
    dtype = choose.choice([torch.float32, torch.float64])

    def pair(*values):
        return choose.choice(values), choose.choice(values)

    groups, deform_groups = pair(1, 2, 4)
    batch, kernel = choose.randint(1, 5), pair(1, 2, 3)
    stride, padding, dilation = pair(1, 2, 3), pair(0, 1, 2), pair(1, 2)
    sizes = (batch, 4 * choose.randint(1, 3), 4 * choose.randint(1, 3))
    size = choose.randint(5, 14), choose.randint(5, 14)
    mask_groups, bias = deform_groups if modulated else None, modulated and choose.random() < 0.7
    spread = choose.choice([0.5, 2.0, 8.0])  # 8 often leaves the map
    geometry = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    sample = make(str(seed), *sizes, size, kernel, deform_groups, mask_groups, bias, spread, **geometry)
    im2col_step = choose.choice([step for step in range(1, batch + 1) if batch % step == 0])
    return sample.to(dtype).leaves().given, tuple(geometry.values()), deform_groups, im2col_step


def outputs_and_gradients(function, tensors):
    output = function()
    return [output, *torch.autograd.grad(output, tensors, ramp(output))]


@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("modulated", [False, True])
def test_deform_conv(seed, modulated):
    """Three functions equal mmcv's: dcnzoo's, mmcv's on dcnzoo's operators, and ``dcnzoo.compat.mmcv``'s."""
    tensors, geometry, deform_groups, step = random_case(1000 * modulated + seed, modulated)
    input, weight, offset, mask, bias = (*tensors, None, None)[:5]
    if modulated:
        name, arguments = (
            "modulated_deform_conv2d",
            (input, offset, mask, weight, bias, *geometry, deform_groups),
        )
    else:
        name = "deform_conv2d"
        arguments = (input, offset, weight, *geometry, deform_groups, False, step)
    mmcvs = functools.partial(getattr(mmcv_ops, name), *arguments)
    compats = functools.partial(getattr(compat, name), *arguments)
    ours = functools.partial(ops.deform_conv2d, input, weight, offset, mask, bias, *geometry, step)
    with running_on(compiled):
        expected = outputs_and_gradients(mmcvs, tensors)
    for function in (ours, mmcvs, compats):
        assert_equal(outputs_and_gradients(function, tensors), expected)


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
    """mmcv's compiled operators. ``nms`` converts its arguments to float32, the only type it accepts."""

    def __getattr__(self, name):
        return getattr(compiled, name)

    @staticmethod
    def nms(boxes, scores, iou_threshold, offset):
        return compiled.nms(boxes.float(), scores.float(), iou_threshold, offset)


@pytest.fixture
def float64():
    """Use float64: in float32, rounding decides the order of nearly equal proposals, and with it the loss.

    One difference remains: mmcv rounds coordinates to float32 for ``floorf``, so that a sample within 1e-6
    before a pixel counts as beyond it, with another slope. Small inputs have no such sample.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_mask_rcnn_r50(float64):
    """MMDetection's mdconv config has the same losses and gradients on mmcv and on dcnzoo."""
    torch.manual_seed(0)
    ours = mask_rcnn("ResNet", "DCNv2")
    theirs = mask_rcnn(resnet.ResNet, mmcv_ops.ModulatedDeformConv2dPack)
    ours.init_weights()
    for module in ours.modules():
        if isinstance(module, OffsetConv2d):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.BatchNorm2d):  # the last norm of a block starts at zero
            nn.init.uniform_(module.weight, 0.2, 0.6)
    theirs.load_state_dict(ours.state_dict())
    data = demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_classes=80, with_mask=True)
    data = ours.data_preprocessor(data, training=True)
    with running_on(InDouble()):
        expected_losses, expected = losses_and_gradients(theirs, data)
    with running_on(stand_in):
        losses, gradients = losses_and_gradients(ours, data)
    assert losses == pytest.approx(expected_losses, rel=1e-9)
    assert set(gradients) == set(expected) and any("conv_offset" in name for name in expected)
    assert_equal([gradients[name] for name in expected], expected.values(), 1e-9)
