"""configs/internimage and configs/flash_internimage build, with the published numbers of parameters."""

from pathlib import Path

import pytest
import torch
import yaml

import dcnzoo.models
import dcnzoo.ops.flops  # noqa: F401  registers the counts of deformable operators

# isort: split
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from .test_configs import CONFIGS, build

FOLDERS = ("internimage", "flash_internimage")
FILES = sorted(path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.py"))
# From InternImage's model zoo: millions of parameters, and billions of operations for 800×1280 pixels
PARAMETERS = {"mask-t": 49, "mask-s": 69, "mask-b": 115, "cascade-l": 277, "cascade-xl": 387}
OPERATIONS = {"t": 270, "s": 340, "b": 501}


def size_of(path):
    return path.stem.split("internimage-")[1].split("_")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path):
    cfg = Config.fromfile(path)
    backbone, dino, flash = (
        cfg.model.backbone,
        path.stem.startswith("dino"),
        path.parent.name.startswith("flash"),
    )
    assert cfg.custom_imports.imports == ["dcnzoo.models"]
    assert backbone.type == ("FlashInternImage" if flash else "InternImage")
    widths = [backbone.channels * 2**i for i in range(4)]
    assert list(cfg.model.neck.in_channels) == (widths[1:] if dino else widths)
    start = "flash_intern_image" if flash else "internimage"
    assert backbone.init_cfg.checkpoint.rsplit("/", 1)[1].startswith(f"{start}_{size_of(path)}_")
    decay = cfg.optim_wrapper.paramwise_cfg
    if "constructor" in cfg.optim_wrapper:
        assert decay.depths == backbone.depths
        assert cfg.optim_wrapper.constructor == "CustomLayerDecayOptimizerConstructor"
    else:
        assert decay.custom_keys.backbone.lr_mult == 0.1 and dino


ONCE = [path for path in FILES if "_1x_" in path.stem]
QUICK = [path for path in ONCE if size_of(path) == "t"]


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p in QUICK else pytest.mark.slow) for p in ONCE]
)
def test_builds(path):
    model = build(Config.fromfile(path))
    keys = model.state_dict()
    key = f"{path.stem.split('-')[0]}-{size_of(path)}"
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if path.parent.name == "internimage" and key in PARAMETERS:
        assert round(millions) == PARAMETERS[key]
    operator = "value_proj" if path.parent.name.startswith("flash") else "input_proj"
    assert f"backbone.levels.3.blocks.3.dcn.{operator}.weight" in keys
    assert ("neck.lateral_convs.0.ln.weight" in keys) == ("flash" in path.stem and "dino" not in path.stem)


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=() if size == "t" else pytest.mark.slow) for size in OPERATIONS]
)
def test_operations_are_the_published_within_3_percent(size):
    """Count all layers, for 1000 proposals and 100 masks, on the meta device.

    ``tools/analysis/get_flops.py``, which runs the detector, agrees within 0.1 %.
    """
    path = CONFIGS / f"internimage/mask-rcnn_internimage-{size}_fpn_1x_coco.py"
    model = build(Config.fromfile(path)).eval()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = model.neck(model.backbone(torch.empty(1, 3, 800, 1280)))
        model.rpn_head(maps)
        model.roi_head.bbox_head(torch.empty(1000, 256, 7, 7))
        model.roi_head.mask_head(torch.empty(100, 256, 14, 14))
    assert counter.get_total_flops() / 2e9 == pytest.approx(OPERATIONS[size], rel=0.03)


def test_index_is_complete():
    listed = {}
    for folder in FOLDERS:
        content = yaml.safe_load((CONFIGS / folder / "metafile.yml").read_text())
        listed |= {Path(model["Config"]): model for model in content["Models"]}
    assert set(listed) == {path.relative_to(CONFIGS.parent) for path in FILES}
    for path, model in listed.items():
        assert model["Published"] == "OpenGVLab"
        # the weights are those of the same model and schedule
        name = Path(model["Weights"]).name.replace("_", "-")
        assert f"internimage-{size_of(path)}-" in name and path.stem.split("_")[-2] in name
    for name in FOLDERS:
        config = CONFIGS / f"demo/mask-rcnn_{name.replace('_', '-')}_fpn_8e_shapes.py"
        assert 0.5e6 < sum(p.numel() for p in build(Config.fromfile(config)).parameters()) < 1e6
