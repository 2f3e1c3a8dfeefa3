"""``--tta`` beside MMDetection's own test-time augmentation, with pictures whose objects are bright boxes."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData

import dcnzoo
from dcnzoo.openmmlab.models.tta import use_test_time_augmentation
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.source import resolve
from tests.helpers.demo import small_settings

CLASSES = ("green", "red")


@MODELS.register_module()
class FindsBrightBoxes(BaseModel):
    """Detects the bright boxes of a picture, but not those whose centre is in its first 40 columns.

    With the mirrored view, it detects all boxes of pictures that are at least 80 pixels wide.
    """

    def forward(self, *args):
        raise NotImplementedError

    def test_step(self, data):
        return [*map(self.detect, data["inputs"], data["data_samples"])]

    def detect(self, picture, sample):  # [3, H, W]
        boxes, labels = [], []
        for label in range(len(CLASSES)):
            bright = (picture[1 + label] > 200).numpy().astype(np.uint8)  # BGR
            _, _, rows, _ = cv2.connectedComponentsWithStats(bright)
            for x, y, width, height, _ in rows[1:]:
                if x + width / 2 >= 40:
                    boxes.append([x, y, x + width, y + height])
                    labels.append(label)
        top, _, left, _ = getattr(sample, "border", (0, 0, 0, 0))
        boxes = torch.tensor(boxes, dtype=torch.float).reshape(-1, 4) - torch.tensor([left, top, left, top])
        boxes /= torch.tensor(getattr(sample, "scale_factor", (1, 1))).repeat(2)
        sample.pred_instances = InstanceData(
            bboxes=boxes, scores=torch.ones(len(boxes)), labels=torch.tensor(labels, dtype=torch.long)
        )
        return sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bright")
    images, annotations = [], []
    for number, (width, height) in enumerate([(100, 60), (90, 80), (82, 100)], 1):
        picture = np.zeros((height, width, 3), np.uint8)
        boxes = [(4, 6, 20, 14), (30, 30, 12, 20), (width - 28, 8, 24, 16), (width - 32, height - 20, 30, 16)]
        for index, (x, y, w, h) in enumerate(boxes):
            picture[y : y + h, x : x + w, 1 + index % 2] = 255
            annotation = dict(image_id=number, bbox=(x, y, w, h), area=w * h, category_id=1 + index % 2)
            annotations.append(annotation | dict(id=len(annotations) + 1, iscrowd=0))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        images.append(dict(id=number, file_name=f"{number}.png", width=width, height=height))
    categories = [dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / "truth.json").write_text(json.dumps(content))
    return folder


def config(folder, pipeline):
    file = str(folder / "truth.json")
    data = dict(type="CocoDataset", ann_file=file, data_prefix=dict(img=f"{folder}/"), test_mode=True)
    data |= dict(metainfo=dict(classes=CLASSES), pipeline=pipeline)
    return Config(
        dict(
            model=dict(type="FindsBrightBoxes"),
            test_dataloader=dict(
                dataset=data, batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False)
            ),
            test_evaluator=[
                dict(type="CocoMetric", ann_file=file, metric="bbox"),
                dict(type="VOCMetric", metric="mAP", eval_mode="area"),
            ],
            test_cfg={},
            default_scope="mmdet",
            work_dir=str(folder / "work"),
        )
    )


def average_precisions(cfg):
    metrics = Runner.from_cfg(cfg).test()
    return {key: metrics[key] for key in ("coco/bbox_mAP", "pascal_voc/mAP")}


LOAD, FLOAT = dict(type="LoadImageFromFile"), dict(type="LoadImageFromFile", to_float32=True)
RESIZE = dict(type="Resize", scale_factor=2.0, keep_ratio=True, interpolation="nearest")
PAD = dict(type="Pad", size=(400, 400))
TRUTH = dict(type="LoadAnnotations", with_bbox=True)
KEYS = ("img_id", "ori_shape", "img_shape", "scale_factor", "border")
PACK = dict(type="PackDetInputs", meta_keys=KEYS)
AROUND = dict(
    type="RandomCenterCropPad", ratios=None, border=None, mean=[0] * 3, std=[1] * 3, to_rgb=False,
    test_mode=True, test_pad_mode=["logical_or", 127],
)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "behind"),  # the flip
    [
        ([LOAD, RESIZE], []),
        ([LOAD, RESIZE], [PAD]),
        ([FLOAT, RESIZE], [PAD]),
        ([LOAD], [dict(type="Pad", size_divisor=64)]),
        ([FLOAT], [AROUND]),
        ([LOAD, dict(type="RandomChoiceResize", scales=[(100, 100)], keep_ratio=True)], [PAD]),
    ],
    ids=["resized", "padded", "float", "only padded", "cropped", "another resize"],
)
def test_the_pipeline_is_mmdetections(folder, before, behind):
    """Each view lacks objects. Together they have all, with boxes that are exact but for a resize."""
    flips = [dict(type="RandomFlip", prob=1.0), dict(type="RandomFlip", prob=0.0)]
    pack = [dict(type="PackDetInputs", meta_keys=(*KEYS, "flip", "flip_direction"))]
    order = dict(type="TestTimeAug", transforms=[flips, [TRUTH], *([step] for step in behind), pack])
    theirs = config(folder, [*before, order])
    tta = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
    theirs.model = dict(type="DetTTAModel", module=theirs.model, tta_cfg=tta)
    expected = average_precisions(theirs)
    assert expected["pascal_voc/mAP"] == 1 and expected["coco/bbox_mAP"] > 0.9
    for steps in ([*before, TRUTH, *behind], [*before, *behind, TRUTH]):
        plain, ours = config(folder, [*steps, PACK]), config(folder, [*steps, PACK])
        use_test_time_augmentation(ours)
        assert average_precisions(ours) == expected
        assert average_precisions(plain)["coco/bbox_mAP"] < 0.8


@pytest.mark.parametrize(
    ("pipeline", "named"),
    [
        ([LOAD, PAD, RESIZE, PACK], "Pad behind Resize"),
        ([LOAD, dict(type="CenterCrop", crop_size=(80, 60)), RESIZE, PACK], "CenterCrop behind Resize"),
        (
            [FLOAT, AROUND, dict(type="FixShapeResize", width=64, height=64), PACK],
            "RandomCenterCropPad behind",
        ),
        ([TRUTH, PACK], "loads pictures"),
    ],
)
def test_a_pipeline_without_a_place_for_the_flip_is_refused(folder, pipeline, named):
    with pytest.raises(UserError, match=rf"^tta: expected .*{named}"):
        use_test_time_augmentation(config(folder, pipeline))


def test_each_data_set_keeps_its_own_pipeline(folder):
    cfg = config(folder, [])
    pipelines = ([LOAD, RESIZE, PAD, PACK], [LOAD, TRUTH, PACK])
    parts = [cfg.test_dataloader.dataset | dict(pipeline=pipeline) for pipeline in pipelines]
    cfg.test_dataloader.dataset = dict(type="ConcatDataset", datasets=parts)
    use_test_time_augmentation(cfg)
    first, second = (part.pipeline for part in cfg.test_dataloader.dataset.datasets)
    assert [step["type"] for step in first] == ["LoadImageFromFile", "Resize", "TestTimeAug"]
    assert [step["type"] for step in second] == ["LoadImageFromFile", "TestTimeAug"]


@pytest.mark.slow
def test_a_padded_input_has_the_same_precision(tmp_path):
    """The shapes, whose pictures are square, on the left of an input that is padded to twice the width."""
    name = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
    pipeline = [dict(step) for step in resolve(name).recipe().cfg.test_dataloader.dataset.pipeline]
    place = 1 + [step["type"] for step in pipeline].index("Resize")
    padded = [*pipeline[:place], dict(type="Pad", size=(256, 128)), *pipeline[place:]]
    metrics = [
        dcnzoo.test(
            name,
            tta=True,
            work_dir=tmp_path / "work",
            cfg_options={
                **{key: value for key, value in small_settings(tmp_path / "data", train=1, val=40).items()
                   if key.startswith("test_")},
                "test_dataloader.dataset.pipeline": steps,
            },
        )
        for steps in (pipeline, padded)
    ]  # fmt: skip
    for key in ("box AP", "mask AP"):
        assert metrics[0][key] > 0.5
        assert metrics[1][key] == pytest.approx(metrics[0][key], abs=0.01)
