"""Fused layers and the score threshold: the same detections, and a model that does not change."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.openmmlab.fuse import fold_norms, raise_threshold, view

from ..export.detectors import build, calibrate, config, has_dcn
from ..export.detectors import predict_batch as predict

FAMILIES = ("Mask R-CNN", "RetinaNet", "Deformable DETR", "YOLOX", "InternImage")
SIZE = (160, 192)
SHAPES = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


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


@torch.no_grad()
def maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return list(model.extract_feat(images))


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
    folded = fold_norms(model)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in each.modules()) for each in (model, folded)]
    assert norms[1] == 0 and (norms[0] > 0) == (family != "InternImage")
    for one, other in zip(maps(model, images), maps(folded, images), strict=True):
        assert (one - other).abs().max() <= 2e-5 * one.abs().max()
    results = predict(folded, images)
    for one, other in zip(before, results, strict=True):
        assert len(one) == len(other) >= 50
        # near ties may exchange their ranks
        distances = np.abs(one.boxes[:, None] - other.boxes).max(-1)
        near = (distances < 0.02) & (np.abs(one.scores[:, None] - other.scores) < 1e-3)
        near &= one.labels[:, None] == other.labels
        assert near.any(1).mean() >= 0.98
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def picture():
    return np.ascontiguousarray(np.kron(draw_image(ShapesSpec(), "val", 0)[0], np.ones((4, 4, 1), np.uint8)))


def test_trained_detector(picture):
    plain, fused = (dcnzoo.load(SHAPES, fuse=on, device="cpu") for on in (False, True))
    assert "layers not fused" in repr(plain) and "fused layers" in repr(fused)
    for threshold in (0.05, 0.5):
        one, other = (detector(picture, bgr=True, score_threshold=threshold) for detector in (plain, fused))
        assert one.names == other.names and len(one) > 1
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert (one.masks == other.masks).mean() > 0.9999
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        np.testing.assert_array_equal(twin(picture, bgr=True).boxes, fused(picture, bgr=True).boxes)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(fused(picture, bgr=True, max_detections=1).boxes, one.boxes[:1], atol=8)


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
