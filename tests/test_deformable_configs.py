"""Every config of docs/deformable_configs.md builds with deformable layers, predicts and trains.

``make test`` tries one config for each place where an operator is called: the families that only have a
deformable backbone are all alike. ``make test-all`` tries every config.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools" / "analysis"))

import deformable_configs as tool  # noqa: E402

PAGE = (ROOT / "docs" / "deformable_configs.md").read_text()
ROWS = {
    name: tuple(rest) for name, *rest in re.findall(r"^\| `(.+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
}
QUICK = {
    "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
    "configs/small/faster-rcnn_r14-mdconv_fpn_24e_coco.py",
    "mmdet::cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py",
    "mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "mmdet::ddod/ddod_r50_fpn_1x_coco.py",
    "mmdet::fcos/fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
    "mmdet::foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco.py",
    "mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py",
    "mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py",
    "mmdet::solov2/solov2-light_r50-dcn_fpn_ms-3x_coco.py",
    "mmdet::tood/tood_r50_fpn_1x_coco.py",
    "mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ROWS]
)
def test_config(name):
    package = re.search(r"(\w+) is not installed", ROWS[name][1])
    if package and not find_spec(package[1]):
        pytest.skip(f"{package[1]} is not installed")
    ((_, cfg, found, why_not),) = tool.deformable_configs([name])
    assert found and not why_not and tool.result_of(cfg) == "ok"


@pytest.mark.slow
def test_the_page_is_complete():
    found = list(tool.deformable_configs(tool.config_names()))
    assert {name: deformable for name, _, deformable, _ in found if deformable} == {
        name: deformable for name, (deformable, _) in ROWS.items()
    }
    unknown = sum(not deformable for *_, deformable, _ in found)
    assert f"Another {unknown} of MMDetection's cannot be built" in PAGE
