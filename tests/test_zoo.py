"""The model of each config in the zoo has the operators that its description lists. More tests: tests/zoo."""

import pytest
import torch

import dcnzoo.models  # noqa: F401  before mmcv.ops, which needs the compiled module

# isort: split
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.config import Config

from dcnzoo.zoo import description, index

from . import demo


def build(model: index.Model) -> torch.nn.Module:
    return demo.build(Config.fromfile(model.config).model, "meta")


def deformable_layers(detector: torch.nn.Module) -> list[str]:
    """Names of the modules that are deformable convolutions."""
    return [n for n, m in detector.named_modules() if isinstance(m, DeformConv2d | ModulatedDeformConv2d)]


# deformable_layers does not find the functions that SAC (detectors) and TOOD call, the teacher of LD, or
# RoI pooling. GLIP needs a language model. BoxInst and Swin cannot be built on the meta device.
OTHERS = ("boxinst", "detectors", "glip", "ld", "tood")


ELSEWHERE = ("dcn", "dcnv2", "internimage", "flash_internimage")
BUILT = [
    model
    for model in index.models()
    if model.package == "mmdet"
    and description.may_be_deformable(model.config)
    and model.config.parent.name not in OTHERS
    and not any(word in model.name for word in ("pool", "swin"))
]


# One family for each position and kind of operator, except those that test_configs.py builds. `make test-all`
# builds the others.
QUICK = ("atss", "cascade_rpn", "centernet", "foveabox", "gfl", "reppoints", "vfnet")
FIRST = {m.config.parent.name: m for m in reversed(BUILT) if m.config.parent.name in QUICK}.values()


@pytest.mark.parametrize(
    "model",
    [m if m in FIRST else pytest.param(m, marks=pytest.mark.slow) for m in BUILT],
    ids=lambda model: model.name,
)
def test_the_model_holds_what_the_config_is_said_to(model):
    layers = deformable_layers(build(model))
    parts = {name.partition(".")[0] for name in layers}
    parts = {part if part in ("backbone", "neck") else "head" for part in parts}
    assert parts == set(description.describe(model).operators)


# test_configs.py and test_configs_intern_image.py build those in ELSEWHERE.
OURS = [m for m in index.models() if m.package == "dcnzoo" and m.config.parent.name not in ELSEWHERE]


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.name)
def test_our_config_builds(model):
    assert sum(p.numel() for p in build(model).parameters()) > 1e5
