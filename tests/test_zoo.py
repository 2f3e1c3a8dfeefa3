"""The configs of the zoo are built, and hold what is said of them. The rest of the zoo: tests/zoo."""

import pytest
import torch

import dcnzoo.models  # noqa: F401  before mmcv.ops, which needs the compiled module

# isort: split
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from dcnzoo.zoo import description, index


def build(model: index.Model) -> torch.nn.Module:
    """Without memory for its parameters."""
    cfg = Config.fromfile(model.config)
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return MODELS.build(cfg.model)


def deformable_layers(detector: torch.nn.Module) -> list[str]:
    """Names of the modules that hold a deformable convolution."""
    return [n for n, m in detector.named_modules() if isinstance(m, DeformConv2d | ModulatedDeformConv2d)]


# RoI pooling is no convolution, SAC and TOOD call the function, a teacher is no module of the model,
# GLIP wants a language model, and BoxInst and Swin cannot be built without memory for them.
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


# A family for each place and kind of operator; `make test-all` builds the others.
QUICK = ("atss", "cascade_rpn", "centernet", "dcn", "dcnv2", "foveabox", "gfl", "reppoints", "vfnet")
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


# The others are built by test_configs.py and test_configs_intern_image.py.
OURS = [m for m in index.models() if m.package == "dcnzoo" and m.config.parent.name not in ELSEWHERE]


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.name)
def test_our_config_builds(model):
    assert sum(p.numel() for p in build(model).parameters()) > 1e5
