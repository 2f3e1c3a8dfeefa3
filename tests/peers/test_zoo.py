"""A checkpoint of mmcv's layers with its old parameter names gives the same detections in dcnzoo."""

import re

import pytest
import torch
from mmdet.models.backbones import resnet
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from test_mmcv import InDouble, float64, mmcv_ops, running_on, stand_in  # noqa: F401  a fixture
from torch import nn

import dcnzoo

# config: (mmcv's layer, count). 13 layers in stages c3 to c5 of a ResNet-50, 4 levels for RoI pooling.
CASES = {
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": (mmcv_ops.ModulatedDeformConv2dPack, 13),
    "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco": (mmcv_ops.ModulatedDeformConv2dPack, 13),
    "dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco": (mmcv_ops.DeformConv2dPack, 13),
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": (mmcv_ops.DeformRoIPoolPack, 4),
    "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco": (mmcv_ops.ModulatedDeformRoIPoolPack, 4),
}
POOLS = tuple(pack for pack, count in CASES.values() if count == 4)


def compiled_detector(name, pack):
    """MMDetection's config with its own backbone and mmcv's layer, and non-trivial weights."""
    cfg = get_config(f"mmdet::{name}.py").model
    cfg.backbone.update(type=resnet.ResNet, init_cfg=None)
    if pack in POOLS:
        cfg.roi_head.bbox_roi_extractor.roi_layer.type = pack
    else:
        cfg.backbone.dcn.type = pack
    init_default_scope("mmdet")
    torch.manual_seed(0)
    detector = MODELS.build(cfg)
    for key, module in detector.named_modules():
        if key.endswith("conv_offset"):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.2, 0.5)
        elif isinstance(module, nn.Linear) and "roi_layers" in key:
            nn.init.normal_(module.weight, std=0.02)
    nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=0.2)
    return detector.eval()


def detections(detector, image) -> InstanceData:
    detector.test_cfg.rcnn.score_thr = 0.0
    sample = {"img_shape": (320, 320), "ori_shape": (320, 320), "scale_factor": (1.0, 1.0)}
    data = {"inputs": [image], "data_samples": [DetDataSample(metainfo=sample)]}
    with torch.no_grad():
        return detector.test_step(data)[0].pred_instances


@pytest.fixture
def masks_in_float32(monkeypatch):
    """MMDetection pastes masks into the image in float32 whatever their dtype is."""
    paste = fcn_mask_head._do_paste_mask

    def paste_floats(masks, boxes, *args, **kwargs):
        return paste(masks.float(), boxes.float(), *args, **kwargs)

    monkeypatch.setattr(fcn_mask_head, "_do_paste_mask", paste_floats)


@pytest.fixture
def pools_of_mmcv(compile_kernels):
    """mmcv has no deformable RoI pooling for the CPU: run its CUDA kernel on host threads."""
    kernel = {"forward": "deform_roi_pool_forward_cuda_kernel<double>"}
    kernels = compile_kernels(kernel, "deform_roi_pool_cuda_kernel")

    class Pools(InDouble):
        @staticmethod
        def deform_roi_pool_forward(
            input, rois, offset, output, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma
        ):
            # without offsets, the kernel gets a null pointer
            offset = offset if offset.numel() else output.new_zeros(len(rois), 2, *output.shape[2:])
            size, how = (pooled_height, pooled_width), (spatial_scale, sampling_ratio, gamma)
            where = (*size, *how, *input.shape[1:])
            kernels("forward", output.numel(), input, rois, offset, output, *where)

    return Pools()


@pytest.mark.parametrize("name", CASES)
def test_detections(name, float64, masks_in_float32, pools_of_mmcv, tmp_path):  # noqa: F811
    pack, layers = CASES[name]
    theirs = compiled_detector(name, pack)
    assert sum(type(module) is pack for module in theirs.modules()) == layers
    legacy = {re.sub(r"\.conv_offset\.", "_offset.", k): v for k, v in theirs.state_dict().items()}
    told = "roi_layers.0.offset_fc.4.weight" if pack in POOLS else "conv2_offset.weight"
    assert sum(re.sub(r"roi_layers\.\d", "roi_layers.0", key).endswith(told) for key in legacy) == layers
    classes = tuple(map(str, range(80)))
    torch.save({"state_dict": legacy, "meta": {"CLASSES": classes}}, tmp_path / "legacy.pth")
    ours = dcnzoo.load(
        name.partition("/")[2], checkpoint=tmp_path / "legacy.pth", device="cpu"
    ).model.double()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.dataset_meta["classes"] == classes

    image = torch.randint(0, 256, (3, 320, 320), generator=torch.Generator().manual_seed(1)).byte()
    for detector in (theirs, ours):
        detector.test_cfg.rpn.max_per_img = 60  # host threads are slow
    with running_on(pools_of_mmcv):
        want = detections(theirs, image)
    with running_on(stand_in):
        got = detections(ours, image)
    assert len(want) == len(got) == 100
    assert torch.equal(got.labels, want.labels)
    for field in ("bboxes", "scores"):
        error = (got[field] - want[field]).abs().max() / want[field].abs().max()
        assert error <= 1e-5, field
    if "masks" in want:
        assert 0 < want.masks.float().mean() < 1
        assert (got.masks != want.masks).float().mean() <= 1e-5
