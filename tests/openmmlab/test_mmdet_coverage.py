"""Configs of MMDetection build, predict and train: three deformable ones, and one without.

``nox -s coverage`` tries all of them.
"""

import pytest

from benchmarks.coverage import test_deformable


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
