"""Functions of fixed size that replace MMDetection's, compared with those."""

import sys

import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import SCNetRoIHead
from mmdet.models.roi_heads.bbox_heads import bbox_head
from mmdet.models.utils import filter_scores_and_topk
from mmdet.registry import MODELS
from mmdet.structures.mask import mask2bbox
from mmdet.utils import register_all_modules
from torch import nn

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.export.detectors import deployable
from dcnzoo.openmmlab.export.replaced import (
    add_context,
    around,
    first_pairs,
    keep_all,
    keep_best,
)
from dcnzoo.openmmlab.export.traced import not_traceable
from dcnzoo.openmmlab.export.wrapper import of_class, pool, replace_everywhere

from .detectors import build


def test_functions_are_replaced_also_where_a_patch_wraps_them():
    users = [vars(module) for name, module in sys.modules.items() if name.startswith("mmdet.")
             and vars(module).get("multiclass_nms") is multiclass_nms]  # fmt: skip
    with Changes() as changes:
        changes.wrap(bbox_head, "multiclass_nms", lambda function, *args: function(*args))
        replace_everywhere(changes, multiclass_nms, len)
        assert len(users) > 3 and all(user["multiclass_nms"] is len for user in users)
    assert all(user["multiclass_nms"] is multiclass_nms for user in users)


def boxes_of(count, most=60.0):
    corner = torch.rand(count, 2) * most
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * 20], 1)


def test_selection_by_score():
    torch.manual_seed(0)
    scores, rest = torch.rand(30, 4), torch.rand(30, 2)
    expected = filter_scores_and_topk(scores, 0.7, 50, dict(rest=rest))
    found = first_pairs(scores, 0.7, 50, dict(rest=rest))
    count = len(expected[0])
    assert 10 < count < 50 == len(found[0]) and (found[0][count:] < 0).all()
    for actual, value in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(actual[:count], value)
    torch.testing.assert_close(found[3]["rest"][:count], expected[3]["rest"])


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_nms(class_agnostic):
    torch.manual_seed(0)
    boxes, scores, labels = boxes_of(80), torch.rand(80), torch.arange(80) % 2
    nms = dict(type="nms", iou_threshold=0.3)
    dets, index = batched_nms(boxes, scores, labels, nms, class_agnostic)
    ours, our_index = keep_all(boxes, scores, labels, nms, class_agnostic)
    assert 10 < len(dets) < 80 == len(ours) and (ours[len(dets) :, 4] < 0).all()
    torch.testing.assert_close(ours[: len(dets)], dets)
    torch.testing.assert_close(our_index[: len(dets)], index)


@pytest.mark.parametrize("per_class", [True, False])
def test_nms_of_scores_per_class(per_class):
    torch.manual_seed(0)
    boxes = torch.cat([boxes_of(40) for _ in range(3)], 1) if per_class else boxes_of(40)
    scores = torch.rand(40, 4)
    args = (boxes, scores, 0.6, dict(type="nms", iou_threshold=0.3), 100)
    dets, labels, index = multiclass_nms(*args, return_inds=True)
    ours, our_labels, our_index = keep_best(*args, return_inds=True)
    count = len(dets)
    assert 10 < count < 100 == len(ours) and (our_labels[count:] == -1).all()
    torch.testing.assert_close(ours[:count], dets)
    torch.testing.assert_close(our_labels[:count], labels)
    torch.testing.assert_close(our_index[:count], index)


def test_values_of_a_class():
    values, labels = torch.arange(24.0).view(4, 3, 2), torch.tensor([[2, 0], [-1, 1]])
    expected = torch.stack([values[0, 2], values[1, 0], values[2, 0], values[3, 1]])[:, None]
    assert torch.equal(of_class(values, labels), expected)
    assert torch.equal(of_class(values[:, :1], labels), values[:, :1])  # a class-agnostic head


def test_pooling_of_scaled_rois():
    register_all_modules()
    torch.manual_seed(0)
    layer = dict(type="RoIAlign", output_size=3, sampling_ratio=0)
    extractor = MODELS.build(
        dict(type="SingleRoIExtractor", roi_layer=layer, out_channels=2, featmap_strides=[4, 8, 16])
    )
    levels = [torch.randn(2, 2, 64 // s, 96 // s) for s in (1, 2, 4)]
    boxes = torch.cat([boxes_of(20, 200.0), boxes_of(20, 40.0) * torch.tensor([1, 1, 4, 4])])
    rois = torch.cat([torch.arange(40.0)[:, None] % 2, boxes], 1)
    for factor in (None, 1.3):
        torch.testing.assert_close(pool(extractor, levels, rois, factor), extractor(levels, rois, factor))
    torch.testing.assert_close(pool(extractor, levels[:1], rois, 1.3), extractor(levels[:1], rois, 1.3))


def test_context_of_the_image():
    features, context = torch.randn(5, 4, 7, 7), torch.randn(3, 4, 1, 1)
    rois = torch.tensor([0.0, 2, 0, 2, 2])[:, None].expand(-1, 5)
    expected = SCNetRoIHead._fuse_glbctx(None, features, context, rois)
    torch.testing.assert_close(add_context(None, features, context, rois), expected)


def test_boxes_around_masks():
    torch.manual_seed(0)
    masks = torch.rand(6, 20, 30) > torch.tensor([0.99, 0.995, 0.9, 0.5, 1, 0])[:, None, None]
    assert not masks[4].any()
    torch.testing.assert_close(around(masks).float(), mask2bbox(masks))


def test_parts_that_were_not_tested_are_refused():
    detector = build("Double-Head")

    class OwnHead(type(detector.roi_head)):
        pass

    detector.roi_head.__class__ = OwnHead
    with pytest.raises(ValueError, match=r"FasterRCNN with OwnHead"):
        deployable(detector)
    with pytest.raises(ValueError, match=r"detector: .*Sequential"):
        deployable(nn.Sequential())


def test_fast_rcnn_is_refused():
    """Its proposals are an input of ``predict``."""
    detector = build("Double-Head")
    assert not_traceable(detector) is None
    del detector.rpn_head
    with pytest.raises(ValueError, match=r"detector: .*FasterRCNN.* proposals"):
        deployable(detector)
