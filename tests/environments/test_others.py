"""OpenMMLab's other packages share the registry of dcnzoo.models: ``nox -s others``."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("mmpretrain") is None:
    pytest.skip("mmpretrain is not installed here", allow_module_level=True)

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import dcnzoo.models
from benchmarks.coverage import test_mmdet

from ..test_import import run

SCOPE = "mmpretrain"


def build(name, **backbone):
    """One of mmpretrain's configs with a user's changes."""
    cfg = Config.fromstring(
        f"_base_ = 'mmpretrain::{name}'\ncustom_imports = dict(imports=['dcnzoo.models'])\n"
        f"model = dict(backbone={backbone!r}, head=dict(num_classes=5, topk=(1,)))",
        ".py",
    )
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel("ERROR")  # initialisation logs every parameter
    with DefaultScope.overwrite_default_scope(SCOPE):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return cfg, model


def deformable(model):
    return {n.split(".")[0] for n, m in model.backbone.named_modules() if isinstance(m, dcnzoo.models.DCNv2)}


def batch(number):
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(number)]
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(i % 5) for i in range(number)])


@pytest.mark.parametrize("name", ["resnet/resnet18_8xb32_in1k.py", "seresnet/seresnet50_8xb32_in1k.py"])
def test_a_classifier_learns_deformably(name):
    cfg, model = build(name, dcn=True, zero_init_residual=False)  # zero would block the gradients
    assert deformable(model) == {"layer2", "layer3", "layer4"}
    model.eval()
    with DefaultScope.overwrite_default_scope(SCOPE), torch.no_grad():
        assert len(model.test_step(batch(2))) == 2
        # init_weights leaves offsets at 0 and masks at 0.5
        offsets = [m for k, m in model.named_parameters() if "conv_offset" in k]
        assert offsets and not any(values.any() for values in offsets)
    model.train()
    losses = model.train_step(batch(3), build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses["loss"].isfinite() and losses["loss"] > 0
    assert any(values.any() for values in offsets), "and have learnt"


def test_mmdet_is_not_needed():
    code = """
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "mmdet":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent)
from importlib import util
find = util.find_spec
util.find_spec = lambda name, *package: None if name == "mmdet" else find(name, *package)
import dcnzoo.models
from mmpretrain.registry import MODELS
backbone = MODELS.build(dict(type="mmpretrain.ResNet", depth=18, dcn=True))
print(sum(type(m) is dcnzoo.models.DCNv2 for m in backbone.modules()), "mmdet" in sys.modules)
"""
    assert run(code).splitlines()[-1] == "6 False"


FAMILIES = [
    "boxinst",
    "bytetrack",
    "convnext",
    "deepsort",
    "glip",
    "grounding_dino",
    "lad",
    "mm_grounding_dino",
    "ocsort",
    "paa",
]
FAMILIES += ["reid", "sort", "strongsort", "timm_example"]


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    assert test_mmdet.result_of(family) == "ok"
