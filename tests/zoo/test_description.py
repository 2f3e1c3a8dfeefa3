"""Descriptions read from configs."""

import inspect
import re

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.openmmlab.packages import mim_folder
from dcnzoo.zoo import description, index

MMDET = mim_folder("mmdet") / "configs"


R50, VFNET = ("ResNet-50", "12 epochs"), ("ResNet-50", "24 epochs")


@pytest.mark.parametrize(
    ("name", "text", "backbone", "schedule"),
    [
        ("mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco", "DCN (backbone)", *R50),
        ("gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco", "DCN (backbone)", "ResNeXt-101-32x4d", "24 epochs"),
        (
            "mask-rcnn_regnetx-3.2GF-mdconv-c3-c5_fpn_1x_coco",
            "DCNv2 (backbone)",
            "regnetx-3.2gf",
            "12 epochs",
        ),
        ("detectors_htc-r50_1x_coco", "SAC (backbone), SAC (neck)", *R50),
        ("faster-rcnn_r50_fpn_mdpool_1x_coco", "ModulatedDeformRoIPool (head)", *R50),
        ("faster-rcnn_r50_fpn_dpool_1x_coco", "DeformRoIPool (head)", *R50),
        ("centernet_r18-dcnv2_8xb16-crop512-140e_coco", "DCNv2 (neck)", "ResNet-18", "140 epochs"),
        ("vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco", "DCNv2 (backbone), DCN + DCNv2 (head)", *VFNET),
        ("ld_r101-gflv1-r101-dcn_fpn_2x_coco", "", "", ""),
        ("centernet_r18_8xb16-crop512-140e_coco", "", "ResNet-18", "140 epochs"),
        ("fovea_r50_fpn_4xb4-1x_coco", "", *R50),
        ("deformable-detr_r50_16xb2-50e_coco", "", "", ""),
        ("mask-rcnn_internimage-t_fpn_1x_coco", "DCNv3 (backbone)", "InternImage-T", "12 epochs"),
    ],
)
def test_describe(name, text, backbone, schedule):
    found = description.describe(index.find(name))
    assert (found.operators_text(), found.backbone, found.schedule) == (text, backbone, schedule)


def test_sizes_of_internimages():
    sizes = {}
    for model in index.models():
        if match := re.search("internimage-([a-z]+)_", model.name):
            sizes.setdefault(match[1].upper(), model)
    assert len(sizes) == 5
    for size, model in sizes.items():
        assert description.describe(model).backbone.endswith(f"InternImage-{size}")


def test_defaults_of_mmdetections_classes():
    for name, (_, option, default) in description._OPERATORS.items():
        parameter = inspect.signature(MODELS.get(name)).parameters.get(option)
        assert default == (parameter.default if parameter else True), name


def test_a_config_that_is_not_read_has_nothing_deformable():
    """The check of the text alone misses no deformable config. Here every config is loaded."""
    sample = [path for path in sorted(MMDET.glob("*/*_r50*1x*coco.py")) if "detr" not in path.name][::6]
    assert len(sample) > 20
    for path in sample:
        cfg = Config.fromfile(path, import_custom_modules=False)
        if dict(description._operators(cfg.model, "head")):
            assert description.may_be_deformable(path), path


@pytest.mark.parametrize(
    ("dcn", "operator"), [(True, "DCNv2"), ("v1", "DCN"), ("v2", "DCNv2"), ("v4", "DCNv4"), (False, None)]
)
def test_short_notation(dcn, operator):
    model = {"backbone": {"type": "ResNet", "dcn": dcn}, "bbox_head": {"type": "RetinaHead"}}
    found = list(description._operators(model, "head"))
    assert found == ([("backbone", operator)] if operator else [])
    model = {"neck": {"type": "PAFPN", "to_deformable": {"where": "*", "kind": dcn}}}
    if dcn in ("v1", "v2"):
        assert list(description._operators(model, "head")) == [("neck", operator)]


def test_packages_that_are_not_there(tmp_path):
    config = tmp_path / "net.py"
    config.write_text("_base_ = ['other::x/y.py', './gone.py']\n")
    assert not description.may_be_deformable(config)
    config.write_text("model = dict(backbone=dict(dcn=True))\n")
    assert not description.may_be_deformable(config), "asked once"
    description._words.cache_clear()
    assert description.may_be_deformable(config)
