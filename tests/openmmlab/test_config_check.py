"""Mistakes in configs are found before the first iteration; published configs have none."""

import json
from pathlib import Path

import mmdet
import pytest
from mmdet.models import RetinaHead
from mmdet.registry import MODELS
from mmengine.config import Config

from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.config.check import check_config, find_problems
from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.runs.build import build_model
from dcnzoo.openmmlab.runs.recipe import Recipe, read_config_file
from dcnzoo.utils.errors import UserError
from tests.helpers.demo import PLAIN
from tests.helpers.processes import ROOT

MMDETS = Path(mmdet.__file__).parent / ".mim" / "configs"
CASCADE = str(ROOT / "configs/dcn/cascade-mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py")
PANOPTIC = "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py"
MASK2FORMER = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
DETR = "mmdet::detr/detr_r50_8xb2-150e_coco.py"
TWO = dict(classes=CLASSES[:2])


def problems_of(cfg):
    try:
        check_config(Config(cfg), "mine.py")
    except UserError as error:
        assert all(line.startswith("mine.py: ") for line in error.args)
        return [line.removeprefix("mine.py: ") for line in error.args]
    return []


def keys_of(cfg):
    return [problem.partition(": ")[0] for problem in problems_of(cfg)]


@pytest.mark.parametrize(
    ("config", "key", "expected", "number"),
    [
        (PLAIN, "model.roi_head.mask_head.num_classes", 3, 2),
        (CASCADE, "model.roi_head.bbox_head.1.num_classes", 80, 79),
        (PANOPTIC, "model.semantic_head.num_things_classes", 80, 79),
        (PANOPTIC, "model.panoptic_fusion_head.num_stuff_classes", 53, 54),
        (MASK2FORMER, "model.panoptic_head.num_things_classes", 80, 3),
        (DETR, "model.bbox_head.num_classes", 80, 1),
    ],
)
def test_number_of_classes(config, key, expected, number):
    path = base_path(config, "")[0] if "::" in config else config
    (line,) = problems_of(read_config_file(path, {key: number}).to_dict())
    assert line.startswith(f"{key}: expected {expected}, ") and line.endswith(f"got {number}")


def test_more_classes_than_the_class_of_a_data_set_has():
    """MMDetection's iSAID config has 80 classes for 16. It trains; with named classes, it is an error."""
    for metainfo, stops in ({}, False), (TWO, True):
        data = dict(dataset=dict(type="iSAIDDataset", metainfo=metainfo))
        head = dict(type="RetinaHead", num_classes=80, in_channels=8)
        cfg = Config(dict(model=dict(type="RetinaNet", bbox_head=head), train_dataloader=data))
        (problem,) = find_problems(cfg)
        assert problem.subject == "model.bbox_head.num_classes" and problem.stops == stops


def test_file_of_the_evaluator(tmp_path):
    """The evaluator's file may have other annotations than the data set's, but not other images."""
    images = [dict(id=i, file_name=f"{i}.png") for i in range(3)]
    files = {"val": images, "copy": images[::-1], "more": [*images, dict(id=3, file_name="3.png")]}
    for name, part in files.items():
        content = dict(images=part, annotations=[dict(id=1, image_id=0)] * (name == "copy"))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))

    def keys(name, **data):
        data = dict(type="CocoDataset", data_root=f"{tmp_path}/", ann_file="val.json", **data)
        metric = dict(type="CocoMetric", ann_file=f"{tmp_path}/{name}.json")
        return keys_of(dict(test_dataloader=dict(dataset=data), test_evaluator=[metric]))

    assert keys("more") == ["test_evaluator.ann_file"]
    assert keys("val") == keys("copy") == keys("does_not_exist") == []


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda dataset: dataset,
        lambda dataset: dict(type="RepeatDataset", times=2, dataset=dataset),
        lambda dataset: dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=dataset),
        lambda dataset: dict(type="ConcatDataset", datasets=[dict(dataset, metainfo=TWO), dataset]),
    ],
)
def test_wrapped_data_sets(wrap, number):
    dataset = wrap(dict(type="CocoDataset", metainfo=dict(classes=CLASSES[:number])))
    model = dict(type="RetinaNet", bbox_head=dict(type="RetinaHead", num_classes=2, in_channels=8))
    cfg = dict(model=model, train_dataloader=dict(dataset=dataset))
    assert keys_of(cfg) == ["model.bbox_head.num_classes"] * (number == 3)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        # a mask head without num_classes has 80
        (
            dict(type="MaskRCNN", roi_head=dict(mask_head=dict(type="FCNMaskHead"))),
            ["model.roi_head.mask_head.num_classes"],
        ),
        (
            dict(type="RetinaNet", bbox_head=dict(type="RetinaHead", num_classes=7)),
            ["model.bbox_head.num_classes"],
        ),
        (dict(type="RetinaNet", bbox_head=dict(type="HeadOfParts", num_classes=7)), []),
    ],
)
def test_number_of_a_head(model, keys):
    data = dict(dataset=dict(type="CocoDataset", metainfo=TWO))
    assert keys_of(dict(model=model, val_dataloader=data)) == keys


def test_dcn_of_a_class_without_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("model = dict(type='CSPDarknet', dcn='v2')\n")
    with pytest.raises(UserError, match=r"mine\.py: model: CSPDarknet: dcn: .*to_deformable"):
        build_model(Recipe.read(file))


@pytest.mark.slow
def test_published_configs():
    """Check all configs that load; the others need packages that are not installed, or a missing base."""
    loaded, problems = 0, set()
    for path in sorted([*MMDETS.rglob("*.py"), *(ROOT / "configs").rglob("*.py")]):
        try:
            cfg = read_config_file(path)
        except (UserError, FileNotFoundError):
            continue
        loaded += 1
        problems |= {(path.parent.name, problem.subject) for problem in find_problems(cfg) if problem.stops}
    assert loaded > 850
    assert problems == set()


@MODELS.register_module()
class HeadOfParts(RetinaHead):
    """A user's own head, which may count other classes than the data."""


@pytest.mark.parametrize(("depth", "key"), [(51, "model.backbone"), (50, "model.bbox_head")])
def test_the_innermost_dictionary_is_named(tmp_path, depth, key):
    backbone, head = {"type": "ResNet", "depth": depth, "dcn": depth == 51}, {"type": "RetinaHead"}
    file = tmp_path / "net.py"
    file.write_text(f"model = dict(type='RetinaNet', backbone={backbone}, neck=None, bbox_head={head})\n")
    cfg = Config.fromfile(file)
    with pytest.raises(UserError, match=rf"/net\.py: {key}: "), config_errors(cfg):
        MODELS.build(cfg.model)


ROI = "model.roi_head"


def test_the_place_is_that_of_the_mistake_and_not_of_an_equal_dictionary():
    places = [
        f"{ROI}.bbox_head.2",
        f"{ROI}.bbox_head.2.loss_cls",
        f"{ROI}.bbox_head.1.loss_bbox",
        f"{ROI}.mask_head.loss_mask",
        f"{ROI}.bbox_roi_extractor",
        f"{ROI}.mask_roi_extractor",
    ]
    named = []
    for place in places:
        with pytest.raises(UserError) as raised:
            build_model(Recipe.read(CASCADE, {f"{place}.no_such_setting": 3}))
        named.append(str(raised.value).partition(".py: ")[2].partition(": ")[0])
    assert named == places
