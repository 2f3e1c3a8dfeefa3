"""Configs of MMDetection build, predict and train: two families, and three deformable configs.

``nox -s coverage`` tries all of them.
"""

import pytest

from benchmarks.coverage import test_deformable, test_mmdet


@pytest.mark.slow
@pytest.mark.parametrize("family", ["atss", "yolox"])
def test_family(family):
    assert test_mmdet.result_of(family) == "ok"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py", "backbone: DCNv2"),
        ("mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py", "neck: DCNv2"),
        (
            "mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
            "backbone: DCNv2; bbox_head: DCNv2, DeformConv2d",
        ),
        ("mmdet::atss/atss_r50_fpn_1x_coco.py", "none"),
    ],
)
def test_deformable_config(name, layers):
    assert test_deformable.result_of(name) == f"ok: {layers}"
