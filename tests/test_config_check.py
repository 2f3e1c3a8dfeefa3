"""Mistakes in configs are found before the first iteration; published configs have none."""

import json
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.config_check import check_config, find_problems
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.errors import UserError

from .commands import run
from .demo import PLAIN
from .processes import ROOT

MMDETS = Path(mmdet.__file__).parent / ".mim" / "configs"
CASCADE = str(ROOT / "configs/dcn/cascade-mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py")
PANOPTIC = "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py"
MASK2FORMER = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
DETR = "mmdet::detr/detr_r50_8xb2-150e_coco.py"


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
        (PLAIN, "model.roi_head.bbox_head.num_classes", 3, 2),
        (PLAIN, "model.roi_head.bbox_head.num_classes", 3, 80),
        (PLAIN, "model.roi_head.mask_head.num_classes", 3, 2),
        (CASCADE, "model.roi_head.bbox_head.1.num_classes", 80, 81),
        (PANOPTIC, "model.semantic_head.num_things_classes", 80, 79),
        (PANOPTIC, "model.panoptic_fusion_head.num_stuff_classes", 53, 54),
        (MASK2FORMER, "model.panoptic_head.num_things_classes", 80, 3),
        (DETR, "model.bbox_head.num_classes", 80, 1),
    ],
)
def test_number_of_classes(tmp_path, config, key, expected, number):
    work = tmp_path / "work"
    options = ["--work-dir", work, "--cfg-options", f"{key}={number}"]
    (line,) = run("train", config, *options, status=1).splitlines()
    assert f"{key}: expected {expected}, " in line and line.endswith(f"got {number}")
    assert not work.exists()


def test_file_of_the_evaluator(tmp_path):
    """The file may have another name, but not other images."""
    images = [dict(id=i, file_name=f"{i}.png") for i in range(3)]
    files = {"val": images, "copy": images[::-1], "more": [*images, dict(id=3, file_name="3.png")]}
    for name, part in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(images=part)))

    def keys(name, **data):
        data = dict(type="CocoDataset", data_root=f"{tmp_path}/", ann_file="val.json", **data)
        metric = dict(type="CocoMetric", ann_file=f"{tmp_path}/{name}.json")
        return keys_of(dict(test_dataloader=dict(dataset=data), test_evaluator=[metric]))

    assert keys("more") == ["test_evaluator.ann_file"]
    assert keys("val") == keys("copy") == keys("does_not_exist") == []


def test_all_problems_are_listed(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(f"""
_base_ = {PLAIN!r}
train_datalader = dict(batch_size=1)
model = dict(backbone=dict(dept=50), rpn_head=dict(anchor_generator=dict(scale=[8])))
""")
    lines = run("train", config, "--work-dir", tmp_path / "work", status=1).splitlines()
    parts = [line.split(": ", 3) for line in lines]
    assert {(error, file) for error, file, *_ in parts} == {("error", str(config))}
    assert {key: text for *_, key, text in parts} == {
        "train_datalader": "expected train_dataloader, got an unknown key",
        "model.backbone.dept": "expected depth, got an unknown key",
        "model.rpn_head.anchor_generator.scale": "expected scales, got an unknown key",
    }


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", ["expected a config, got an empty file"]),
        ("a = 1", ["model", "train_dataloader", "train_cfg", "optim_wrapper"]),
    ],
)
def test_incomplete_configs(tmp_path, text, keys):
    (tmp_path / "mine.py").write_text(text)
    lines = run("train", tmp_path / "mine.py", "--work-dir", tmp_path / "work", status=1).splitlines()
    assert [line.split(": ")[2] for line in lines] == keys


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


TWO = dict(classes=CLASSES[:2])


def test_default_number_of_classes():
    """A mask head without ``num_classes`` has 80."""
    data = dict(dataset=dict(type="CocoDataset", metainfo=TWO))
    roi_head = dict(type="StandardRoIHead", mask_head=dict(type="FCNMaskHead"))
    cfg = dict(model=dict(type="MaskRCNN", roi_head=roi_head), val_dataloader=data)
    (problem,) = problems_of(cfg)
    assert problem.startswith("model.roi_head.mask_head.num_classes: ") and "val_dataloader" in problem


def test_class_names_that_are_a_string():
    data = dict(dataset=dict(type="CocoDataset", metainfo=dict(classes=("date"))))
    (problem,) = problems_of(dict(val_dataloader=data))
    assert problem.startswith("val_dataloader: metainfo.classes: expected a tuple")


def test_variables_and_other_modules():
    """Free variables, a layer's settings that mmcv removes, and classes that accept any argument."""
    neck = dict(type="FPN", in_channels=[8], norm_cfg=dict(type="BN", requires_grad=True), dcn=True)
    cfg = dict(model=dict(type="RetinaNet", neck=neck), val_evaluator_2=[], conv_cfg=None, train_pipeline=[])
    assert problems_of(cfg) == []


def test_dcn_of_a_class_without_it():
    cfg = dict(model=dict(type="YOLOX", backbone=dict(type="CSPDarknet", dcn="v2"), to_deformable="*"))
    (problem,) = problems_of(cfg)
    assert problem.startswith("model.backbone: CSPDarknet: dcn: ") and "to_deformable" in problem


SAMPLE = [  # heads, data sets or variables of many kinds
    "cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py",
    "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "htc/htc_r50_fpn_1x_coco.py",
    "mm_grounding_dino/odinw/grounding_dino_swin-t_pretrain_odinw13.py",
    "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
    "reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py",
    "soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py",
    "v3det/dino-4scale_r50_8xb2_sample1e-3_v3det_36e.py",
    "strongsort/strongsort_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_published_config(name):
    check_config(read_config_file(MMDETS / name), name)


@pytest.mark.slow
def test_published_configs():
    """All that can be loaded; the others need packages that are not installed, or a missing base."""
    loaded, problems = 0, set()
    for path in sorted([*MMDETS.rglob("*.py"), *(ROOT / "configs").rglob("*.py")]):
        try:
            cfg = read_config_file(path)
        except (UserError, FileNotFoundError):
            continue
        loaded += 1
        check_config(cfg, path)
        problems |= {(path.parent.name, problem.subject) for problem in find_problems(cfg) if problem.stops}
    assert loaded > 850
    assert problems == {
        ("datasets", "val_dataloader.dataset.pipeline.2.type"),  # PackInputs of another package
        ("datasets", "test_dataloader.dataset.pipeline.2.type"),
        ("bytetrack", "test_evaluator.type"),  # MOTChallengeMetrics, which exists nowhere
        ("guided_anchoring", "data"),  # keys of MMDetection 2
        ("guided_anchoring", "optimizer_config"),
    }


def test_options_of_a_published_config_with_problems():
    path = MMDETS / "guided_anchoring/ga-fast-rcnn_r50-caffe_fpn_1x_coco.py"
    with pytest.raises(UserError) as caught:
        check_config(read_config_file(path, {"train_dataloader.batch_size": 0}), path)
    (line,) = caught.value.args
    assert "train_dataloader.batch_size" in line
