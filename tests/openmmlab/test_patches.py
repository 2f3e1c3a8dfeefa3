"""The patches fix what fails on recent PyTorch and change nothing else."""

import copy
import os
import pickle
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.models import FCNMaskHead, SSDHead
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.config import config as config_module
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from torch import nn
from yapf.yapflib.yapf_api import FormatCode

import dcnzoo.models  # noqa: F401  applies the patches; before mmdet, which needs mmcv.ops
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.openmmlab import detector
from dcnzoo.openmmlab.runs.build import build_model
from dcnzoo.openmmlab.runs.recipe import Recipe
from tests.helpers import demo
from tests.helpers.processes import python_with_torch

# Checkpoints


@pytest.mark.parametrize(
    "call",
    [
        (os.getenv, ("HOME",)),
        (getattr, ("text", "upper")),
        (getattr, (HistoryBuffer, "__init__")),
        (getattr, (HistoryBuffer, "register_statistics")),
    ],
)
@pytest.mark.parametrize("within", [lambda value: value, lambda value: np.array([value], dtype=object)])
def test_loading_stays_strict(tmp_path, call, within):
    class Call:
        def __reduce__(self):
            return call

    torch.save({"x": within(Call())}, tmp_path / "evil.pth")
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        torch.load(tmp_path / "evil.pth")


# Mixed precision


def amp_wrapper(parameters, **arguments):
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    return OPTIM_WRAPPERS.build(dict(type="AmpOptimWrapper", optimizer=optimizer, **arguments))


def test_mixed_precision_on_the_cpu_of_a_machine_with_a_gpu():
    """The device of a run decides, not what the machine has when dcnzoo is imported."""
    code = """
import torch
detects_gpu, torch.cuda.is_available = torch.cuda.is_available, lambda: True
import dcnzoo.models
from mmengine.registry import OPTIM_WRAPPERS
from dcnzoo.openmmlab.runs.device import use_device
torch.cuda.is_available = detects_gpu
with use_device("cpu"):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    OPTIM_WRAPPERS.build(dict(type="AmpOptimWrapper", optimizer=optimizer))
"""
    python_with_torch(code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU: mmengine's own wrapper works")
def test_amp_on_the_cpu_is_bfloat16():
    layer = nn.Linear(2, 3)
    before = layer.bias.detach().clone()
    wrapper = amp_wrapper(layer.parameters(), clip_grad=dict(max_norm=1e6))
    assert isinstance(wrapper, AmpOptimWrapper)
    with wrapper.optim_context(layer):
        output = layer(torch.ones(1, 2))
    assert output.dtype == torch.bfloat16
    wrapper.update_params(output.float().sum())
    torch.testing.assert_close(layer.bias, before - 0.5)  # the gradient is unscaled
    wrapper.load_state_dict(wrapper.state_dict())
    amp_wrapper(layer.parameters(), loss_scale=dict(init_scale=512.0))
    with pytest.raises(ValueError, match=r"dtype: expected bfloat16 on the CPU, got float16"):
        amp_wrapper([nn.Parameter(torch.zeros(1))], dtype="float16")


# Heads and detectors


def test_ssd_head():
    anchors = dict(type="SSDAnchorGenerator", scale_major=False, input_size=32, strides=[16])
    anchors |= dict(ratios=[[2]], min_sizes=[8], max_sizes=[16])
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = SSDHead(num_classes=2, in_channels=(4,), anchor_generator=anchors)
    test_cfg = dict(nms=dict(type="nms", iou_threshold=0.5), score_thr=0.02, max_per_img=20)
    metas = [dict(img_shape=(32, 32), scale_factor=(1.0, 1.0))]
    (result,) = head.predict_by_feat(
        *head([torch.randn(1, 4, 2, 2)]), batch_img_metas=metas, cfg=ConfigDict(test_cfg)
    )
    assert len(result.bboxes) > 0


def build(config, **options):
    """A detector of MMDetection's configs on the meta device, without weights."""
    model = get_config(f"mmdet::{config}").model
    model.update(options)
    return demo.build(model, "meta")


def test_cascade_rpn_head():
    config = "cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py"
    assert [head.num_classes for head in build(config).bbox_head.stages] == [1, 1]
    (inside, _) = build("cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py").rpn_head.stages
    assert inside.num_classes == 1
    head = get_config(f"mmdet::{config}").model.rpn_head
    head.update(num_classes=3, train_cfg=None, test_cfg=None)
    with pytest.raises(AssertionError, match="Only support num_classes == 1"):
        MODELS.build(head)


def test_teacher_is_found_from_anywhere(tmp_path, monkeypatch):
    config, teacher = "ld/ld_r18-gflv1-r101_fpn_1x_coco.py", "configs/gfl/gfl_r50_fpn_1x_coco.py"
    monkeypatch.chdir(tmp_path)
    assert build(config, teacher_ckpt=None, teacher_config=teacher).teacher_model.backbone.depth == 50


def test_text_of_a_config(monkeypatch):
    monkeypatch.setattr("mmengine.config.config.FormatCode", FormatCode)  # which conftest.py replaces
    names = ["{{$HOME:x}}", "{{ fileDirname }}"]  # mmengine replaces templates in a text
    assert Config.fromstring(Config(dict(names=names)).pretty_text, ".py").names == names
    monkeypatch.setattr(config_module, "FormatCode", None)
    assert Config(dict(names=names)).pretty_text, "it is formatted once"


def test_a_detector_that_torch_cannot_convert_to_channels_last():
    """CenterNet views heatmaps as matrices."""
    cfg = get_config("mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py")
    cfg.model.backbone.init_cfg = None
    batch = demo_mm_inputs(2, [[3, 64, 96], [3, 64, 96]], num_items=[2, 1], num_classes=3)

    def outcome(channels_last):
        torch.manual_seed(0)
        model = build_model(Recipe(copy.deepcopy(cfg)))
        found = detector.TorchDetector(model, channels_last=channels_last).model.test_step(
            copy.deepcopy(batch)
        )
        assert model.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        model.train()
        losses = model(**model.data_preprocessor(copy.deepcopy(batch), training=True), mode="loss")
        return losses, [sample.pred_instances.scores for sample in found]

    torch.testing.assert_close(outcome(channels_last=True), outcome(channels_last=False))


IMAGE = (5, 7)  # height, width


@pytest.mark.parametrize(
    "box",
    [(-9.0, 1, -5, 3), (12.0, 1, 15, 3), (1.0, -8, 4, -3), (1.0, 9, 4, 12), (-1.0, 0, -1, 0), (8.0, 6, 8, 6)],
    ids=["left", "right", "above", "below", "left, just", "right, just"],
)
def test_a_mask_outside_the_image(box):
    """It is not pasted; the other masks are pasted as usual."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        head = FCNMaskHead(num_convs=0, in_channels=1, num_classes=1, upsample_cfg=dict(type=None))
    boxes = torch.tensor([(1.0, 1, 4, 3), box, (-3.0, -2, 2, 4)])
    results = [ConfigDict(bboxes=boxes, labels=torch.zeros(3).long())]
    metas, cfg = [dict(scale_factor=(1.0, 1.0), ori_shape=IMAGE)], ConfigDict(mask_thr_binary=0.5)
    (result,) = head.predict_by_feat((torch.full((3, 1, 3, 2), 9.0),), results, metas, cfg)
    first, outside, last = result.masks
    assert not outside.any() and outside.shape == IMAGE
    assert first.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
    assert last.nonzero().tolist() == [[y, x] for y in range(4) for x in range(2)]


# to_deformable in a config


CONV2 = "stage[34].*.blocks.*.conv2.conv"


def csp_darknet(**options):
    cfg = dict(type="CSPDarknet", deepen_factor=0.33, widen_factor=0.125, out_indices=(2, 3, 4), **options)
    return MODELS.build(ConfigDict(cfg))


@pytest.mark.parametrize(("options", "kind"), [(dict(where=CONV2, kind="v1"), "v1"), (CONV2, "v2")])
def test_to_deformable_in_a_backbone_without_dcn(options, kind):
    plain, model = csp_darknet(), csp_darknet(to_deformable=options)
    packs = {n: m for n, m in model.named_modules() if isinstance(m, PackedDeformConv2d)}
    expected = {n for n, m in plain.named_modules() if fnmatch(n, CONV2)}
    assert set(packs) == expected and len(expected) >= 2
    assert {m.mask_channels == 0 for m in packs.values()} == {kind == "v1"}
    model.init_weights()
    assert not any(p.any() for m in packs.values() for p in m.conv_offset.parameters())
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    model.eval()
    plain.eval()
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=1e-4)


def test_to_deformable_in_every_part_of_a_detector():
    cfg = get_config("mmdet::yolox/yolox_tiny_8xb8-300e_coco.py").model
    cfg.backbone.to_deformable = CONV2
    cfg.neck.to_deformable = "downsamples.*.conv"
    cfg.to_deformable = dict(where="bbox_head.multi_level_cls_convs.0.0.conv")
    before = cfg.copy()
    detector = demo.build(cfg, "meta")
    assert cfg == before
    kinds = {n.split(".")[0] for n, m in detector.named_modules() if isinstance(m, PackedDeformConv2d)}
    assert kinds == {"backbone", "neck", "bbox_head"}


def test_mm_sync_batch_norm(monkeypatch):
    """One process is a group of size 1; several processes keep the size of theirs."""
    assert MODELS.build(dict(type="MMSyncBN", num_features=4)).group_size == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 3)
    monkeypatch.setattr(torch.distributed, "group", SimpleNamespace(WORLD=None))
    assert MODELS.build(dict(type="MMSyncBN", num_features=4)).group_size == 3


def test_histories_keep_the_last_values():
    for options, length in (({}, 20_000), ({"max_length": 3}, 3)):
        buffer = HistoryBuffer(**options)
        for number in range(length + 2):
            buffer.update(number)
        assert len(buffer.data[0]) == length and buffer.current() == length + 1
