"""Masks have the size of the picture, and are in the same place as in the network's input."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

import dcnzoo.models  # noqa: F401  applies the patches
from dcnzoo.detect.sources import ModelError
from dcnzoo.openmmlab.datasets.coco import CocoMetric
from dcnzoo.openmmlab.models.tta import InstanceTTAModel
from tests.helpers import detectors

SIDE = 160
PACK = dict(type="PackDetInputs", meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor"))


@pytest.fixture(scope="module")
def rtmdet():
    return detectors.build("RTMDet-Ins", score_thr=0.0, max_per_img=8)


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("width, height", [(450, 300), (300, 450), (50, 300), (300, 200)])
def test_masks_of_rtmdet_ins(rtmdet, width, height, keep_ratio):
    """The masks equal those in the network's input, resized by OpenCV."""
    resize = dict(type="Resize", scale=(SIDE, SIDE), keep_ratio=keep_ratio)
    pad = dict(type="Pad", size=(SIDE, SIDE), pad_val=dict(img=114))
    detector = detectors.loaded(rtmdet, resize, pad, PACK)
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    result = detector(picture, score_threshold=0)
    assert len(result) and result.masks.shape == (len(result), height, width)

    inputs = detector.prepare(picture)
    in_picture, in_input = (predict(rtmdet, inputs, rescale) for rescale in (True, False))
    sample = inputs["data_samples"]
    sides = zip((height, width), sample.scale_factor[::-1], strict=True)
    down, across = (round(side * factor) for side, factor in sides)  # size of the picture in the input
    scale = torch.tensor(sample.scale_factor).repeat(2)
    np.testing.assert_allclose(in_picture.bboxes, in_input.bboxes / scale, rtol=1e-5, atol=1e-3)
    for mask, small in zip(in_picture.masks.numpy(), in_input.masks.numpy(), strict=True):
        expected = cv2.resize(small[:down, :across].astype(np.float32), (width, height)) > 0.5
        assert (mask == expected).mean() > 0.97


@torch.no_grad()
def predict(network, inputs, rescale):
    batch = {"inputs": [inputs["inputs"]], "data_samples": [inputs["data_samples"]]}
    data = network.data_preprocessor(batch)
    return network.predict(data["inputs"], data["data_samples"], rescale=rescale)[0].pred_instances


class OwnDetector(nn.Module):
    """A user's detector, whose masks are of a size of its own."""

    def __init__(self, mask_size):
        super().__init__()
        self.layer, self.mask_size = nn.Linear(1, 1), mask_size

    def test_step(self, data):
        sample = DetDataSample(metainfo={"ori_shape": (30, 45)})
        sample.pred_instances = InstanceData(
            bboxes=torch.zeros(1, 4),
            scores=torch.ones(1),
            labels=torch.zeros(1, dtype=torch.long),
            masks=torch.zeros(1, *self.mask_size, dtype=torch.bool),
        )
        return [sample]


def test_masks_of_another_size_are_an_error():
    """A call and an evaluation raise the error."""
    right, wrong = OwnDetector((30, 45)), OwnDetector((45, 30))
    picture = np.zeros((30, 45, 3), np.uint8)
    assert detectors.loaded(right, PACK)(picture).masks.shape == (1, 30, 45)
    with pytest.raises(ModelError, match=r"OwnDetector: masks: expected 45 × 30 pixels.*got 30 × 45"):
        detectors.loaded(wrong, PACK)(picture)
    metric = CocoMetric(metric="segm")
    metric.process({}, [{**right.test_step(None)[0].to_dict(), "img_id": 0, "instances": []}])
    with pytest.raises(ModelError, match="CocoMetric: masks: expected 45 × 30"):
        metric.process({}, [{**wrong.test_step(None)[0].to_dict(), "img_id": 1, "instances": []}])


@pytest.mark.parametrize(
    ("direction", "axes"), [("horizontal", (-1,)), ("vertical", (-2,)), ("diagonal", (-1, -2))]
)
def test_masks_of_a_mirrored_view_come_back(direction, axes):
    def view(box, label, score, mirror):
        mask, boxes = torch.zeros(1, 20, 30, dtype=torch.bool), torch.tensor([box]).float()
        mask[0, box[1] : box[3], box[0] : box[2]] = True
        if mirror:
            boxes, mask = bbox_flip(boxes, (20, 30), direction), mask.flip(axes)
        meta = {"ori_shape": (20, 30), "flip": mirror, "flip_direction": direction}
        found = dict(scores=torch.tensor([score]), labels=torch.tensor([label]), masks=mask, bboxes=boxes)
        return DetDataSample(metainfo=meta, pred_instances=InstanceData(**found))

    model = SimpleNamespace(
        tta_cfg=ConfigDict(nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=10),
        merge_aug_bboxes=lambda *args: InstanceTTAModel.merge_aug_bboxes(None, *args),
    )
    views = [view((2, 3, 9, 7), 0, 0.6, False), view((11, 8, 29, 20), 1, 0.9, True)]
    merged = InstanceTTAModel._merge_single_sample(model, views).pred_instances
    assert merged.labels.tolist() == [1, 0]
    assert merged.bboxes.tolist() == [[11, 8, 29, 20], [2, 3, 9, 7]]
    for (x1, y1, x2, y2), mask in zip(merged.bboxes.int().tolist(), merged.masks, strict=True):
        assert mask[y1:y2, x1:x2].all() and mask.sum() == (y2 - y1) * (x2 - x1)
