"""OpenMMLab's packages other than MMDetection, without a compiled mmcv: ``nox -s openmmlab``."""

from fnmatch import fnmatch
from importlib.util import find_spec

import pytest
import torch

if find_spec("mmseg") is None:
    pytest.skip("the group openmmlab-others is not installed here", allow_module_level=True)

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

import dcnzoo.models
from benchmarks.coverage import test_openmmlab as coverage
from benchmarks.coverage import trial
from dcnzoo import diagnosis
from dcnzoo.layers import PackedDeformConv2d

from ..processes import ROOT, python
from ..test_import import run

TOP_DOWN = "body_2d_keypoint/topdown_heatmap"
PACKAGES = [package for package in coverage.PACKAGES if find_spec(package)]


def build(package, name, **backbone):
    """One of a package's configs with a user's changes."""
    cfg = Config.fromstring(
        f"_base_ = '{package}::{name}'\ncustom_imports = dict(imports=['dcnzoo.models'])\n"
        f"model = dict(backbone={backbone!r})",
        ".py",
    )
    trial.forget_weights(cfg.model)
    coverage.PACKAGES[package].adapt(cfg)
    MMLogger.get_current_instance().setLevel("ERROR")  # initialisation logs every parameter
    return cfg, trial.prepare(cfg, package)


def train_a_step(package, cfg, model):
    """Run a prediction and a training step; returns the losses, which are finite."""
    with DefaultScope.overwrite_default_scope(package):
        predicted, trained = coverage.PACKAGES[package].batches(model, cfg)
        assert len(trial.predict(model, predicted)) == 1
        return trial.train(model, cfg, trained)


def offsets(model):
    return [p for name, p in model.named_parameters() if "conv_offset" in name]


@pytest.mark.parametrize(
    ("package", "name", "backbone"),
    [
        ("mmseg", "pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py", dict(dcn=True, type="ResNetV1d")),
        ("mmpose", f"{TOP_DOWN}/coco/td-hm_seresnet50_8xb64-210e_coco-256x192.py", dict(dcn=True)),
        ("mmpretrain", "resnet/resnet18_8xb32_in1k.py", dict(dcn=True)),
    ],
)
def test_a_resnet_learns_deformably(package, name, backbone):
    # zero-initialised residual branches would block the gradients
    cfg, model = build(package, name, zero_init_residual=False, **backbone)
    layers = {n for n, m in model.backbone.named_modules() if isinstance(m, dcnzoo.models.DCNv2)}
    assert {n.split(".")[0] for n in layers} == {"layer2", "layer3", "layer4"}
    assert not any(p.any() for p in offsets(model)) and offsets(model), "whatever init_weights does"
    assert train_a_step(package, cfg, model)["loss"] > 0
    assert any(p.any() for p in offsets(model)), "and have learnt"


@pytest.mark.parametrize(
    ("package", "name", "where"),
    [
        (
            "mmpose",
            f"{TOP_DOWN}/coco/td-hm_mobilenetv2_8xb64-210e_coco-256x192.py",
            "layer[67].*.conv.1.conv",
        ),
        ("mmseg", "unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py", "encoder.[34].*.conv"),
    ],
)
def test_to_deformable_in_any_backbone(package, name, where):
    _, plain = build(package, name)
    expected = {
        n for n, m in plain.backbone.named_modules() if fnmatch(n, where) and type(m) is torch.nn.Conv2d
    }
    cfg, model = build(package, name, to_deformable=dict(where=where, kind="v2"))
    packs = {n for n, m in model.backbone.named_modules() if isinstance(m, PackedDeformConv2d)}
    assert packs == expected and len(packs) >= 2
    train_a_step(package, cfg, model)


def test_no_package_is_imported_by_dcnzoo():
    packages = [package for package in PACKAGES if package != "mmpretrain"]  # imported by mmdet
    code = f"import sys, dcnzoo.models\nprint([name for name in {packages} if name in sys.modules])"
    assert run(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", [package for package in diagnosis.PACKAGES if find_spec(package)])
def test_doctor(package):
    assert "no problems found" in python("-m", "dcnzoo", "doctor", "--for", package, cwd=ROOT).stdout


FAMILIES = {"mmseg/psanet", "mmseg/mask2former", "mmseg/segformer", "mmocr/textdet/textsnake"}
FAMILIES |= {"mmagic/basicvsr_pp", "mmagic/edvr", "mmagic/tdan"}  # deformable alignment


@pytest.mark.parametrize("family", FAMILIES & coverage.FAMILIES.keys())
def test_family(family):
    assert trial.is_ok(coverage.result_of(coverage.FAMILIES[family]))
