"""Descriptions read from configs."""

import inspect

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo import description, index

MMDET = mim_folder("mmdet") / "configs"


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco", {"backbone": "DCN"}),
        ("mask-rcnn_regnetx-3.2GF-mdconv-c3-c5_fpn_1x_coco", {"backbone": "DCNv2"}),
        ("detectors_htc-r50_1x_coco", {"backbone": "SAC", "neck": "SAC"}),
        ("faster-rcnn_r50_fpn_mdpool_1x_coco", {"head": "ModulatedDeformRoIPool"}),
        ("faster-rcnn_r50_fpn_dpool_1x_coco", {"head": "DeformRoIPool"}),
        ("centernet_r18-dcnv2_8xb16-crop512-140e_coco", {"neck": "DCNv2"}),
        ("vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco", {"backbone": "DCNv2", "head": "DCN + DCNv2"}),
        ("ld_r101-gflv1-r101-dcn_fpn_2x_coco", {}),
        ("centernet_r18_8xb16-crop512-140e_coco", {}),
        ("deformable-detr_r50_16xb2-50e_coco", {}),
        ("mask-rcnn_internimage-t_fpn_1x_coco", {"backbone": "DCNv3"}),
    ],
)
def test_operators(name, operators):
    assert description.operators_of(index.find(name)) == operators


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
