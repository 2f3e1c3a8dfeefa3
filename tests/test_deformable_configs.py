"""docs/deformable_configs.md: what it says of every config is so.

One config of each family is tried by ``make test``, and the whole page by ``make test-all``.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dcnzoo.ops import deform_conv2d

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools" / "analysis"))

import deformable_configs as tool  # noqa: E402

PAGE = (ROOT / "docs" / "deformable_configs.md").read_text()
ROWS = {
    name: tuple(rest) for name, *rest in re.findall(r"^\| `(.+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
}
QUICK = {
    "configs/dcn/mask-rcnn_r50-dconv-c3-c5_fpn_amp-1x_coco.py",
    "configs/dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py",
    "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
    "configs/flash_internimage/mask-rcnn_flash-internimage-t_fpn_1x_coco.py",
    "configs/internimage/dino-4scale_internimage-t_1x_coco.py",
    "configs/small/faster-rcnn_r14-mdconv_fpn_24e_coco.py",
    "mmdet::cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py",
    "mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "mmdet::centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco.py",
    "mmdet::ddod/ddod_r50_fpn_1x_coco.py",
    "mmdet::detectors/cascade-rcnn_r50-sac_1x_coco.py",
    "mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py",
    "mmdet::empirical_attention/faster-rcnn_r50-attn0010-dcn_fpn_1x_coco.py",
    "mmdet::fcos/fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
    "mmdet::foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco.py",
    "mmdet::gcnet/cascade-mask-rcnn_x101-32x4d-syncbn-dconv-c3-c5_fpn_1x_coco.py",
    "mmdet::gfl/gfl_r101-dconv-c3-c5_fpn_ms-2x_coco.py",
    "mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py",
    "mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py",
    "mmdet::htc/htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco.py",
    "mmdet::ld/ld_r101-gflv1-r101-dcn_fpn_2x_coco.py",
    "mmdet::nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py",
    "mmdet::regnet/mask-rcnn_regnetx-3.2GF-mdconv-c3-c5_fpn_1x_coco.py",
    "mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py",
    "mmdet::solov2/solov2-light_r50-dcn_fpn_ms-3x_coco.py",
    "mmdet::tood/tood_r50_fpn_1x_coco.py",
    "mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
}


def family(name):
    return re.split("[:/]+", name)[:2]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ROWS]
)
def test_config(name):
    deformable, result = ROWS[name]
    package = re.search(r"(\w+) is not installed", result)
    if package and find_spec(package[1]):
        pytest.skip(f"the page was made without {package[1]}")
    ((_, cfg, found, why_not),) = tool.deformable_configs([name])
    assert (found, why_not or tool.result_of(cfg)) == (deformable, result)


def test_one_of_each_family_is_quick():
    assert set(ROWS) > QUICK
    assert sorted(map(family, QUICK)) == sorted(map(list, {tuple(family(name)) for name in ROWS}))


def test_the_page_counts_right():
    working = sum(result == "ok" for _, result in ROWS.values())
    assert f"{len(ROWS)} configs, {working} of them ok." in PAGE


@pytest.mark.slow
def test_the_page_is_complete():
    found = list(tool.deformable_configs(tool.config_names()))
    assert {name: deformable for name, _, deformable, _ in found if deformable} == {
        name: deformable for name, (deformable, _) in ROWS.items()
    }
    unknown = sum(not deformable for *_, deformable, _ in found)
    assert f"Another {unknown} of MMDetection's cannot be built" in PAGE


# That a fault would be noticed


CENTERNET = "mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py"


def replace_operator(monkeypatch, function):
    monkeypatch.setattr("dcnzoo.ops.deform_conv2d", function)


def test_another_operator_is_noticed(monkeypatch):
    def plain(x, weight, offset, mask, bias, *geometry):
        return torch.nn.functional.conv2d(x, weight, bias, *geometry[:4])

    replace_operator(monkeypatch, plain)
    assert tool.result_of(tool.read(CENTERNET)) == "AssertionError: 0 calls of dcnzoo's operators to predict"


def test_a_missing_gradient_is_noticed(monkeypatch):
    def cut(x, weight, offset, mask, *arguments):
        return deform_conv2d(x, weight, offset.detach(), mask.detach(), *arguments)

    replace_operator(monkeypatch, cut)
    result = tool.result_of(tool.read(CENTERNET))
    assert re.fullmatch(r"AssertionError: neck.*: no gradient, or not a finite one", result)


def test_numbers_that_are_none_are_noticed(monkeypatch):
    def broken(x, *arguments):
        return deform_conv2d(x, *arguments) * float("nan")

    replace_operator(monkeypatch, broken)
    assert tool.result_of(tool.read(CENTERNET)) != "ok"


def test_words_of_a_config_that_cannot_be_built():
    assert tool.names_in("dict(type='SAC'), 'type': 'DyHead', DCNv2") == "DCNv2, DyHead, SAC"
    assert tool.names_in("https://download.openmmlab.com/dcn/ MyDCN FCOSHead") == ""
