"""configs/: those of DCN equal MMDetection's; all build, with the published numbers of parameters."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.hub import get_config
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo.models  # noqa: F401  registers the backbones
from dcnzoo.ops import flops
from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo import index
from tests.helpers import demo
from tests.helpers.modules import shapes
from tests.helpers.processes import ROOT

CONFIGS = ROOT / "configs"
MMDETS = mim_folder("mmdet") / "configs"
PAPERS = ("dcn", "dcnv2")
FILES = sorted(path for paper in PAPERS for path in (CONFIGS / paper).glob("*.py"))


def build(cfg):
    cfg.model.backbone.init_cfg = None  # no download
    return demo.build(cfg.model, "meta")


def without_scope(node):
    """A part of a config without the ``_scope_`` entries from ``mmdet::``."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != "_scope_"}
    return [without_scope(value) for value in node] if isinstance(node, list) else node


# they use the same code as the others; `make test-all` builds them
LARGE = re.compile("x101|r101|cascade|amp|group4")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * bool(LARGE.search(p.stem))) for p in FILES]
)
def test_is_mmdetections(path):
    """The config equals MMDetection's config of that name, which writes ``dcn`` in full."""
    ours, theirs = Config.fromfile(path), get_config(f"mmdet::{path.parent.name}/{path.name}")
    assert ours.custom_imports.imports == ["dcnzoo.models"]
    for key in (set(ours) | set(theirs)) - {"model", "custom_imports"}:
        assert without_scope(ours[key]) == without_scope(theirs[key]), key
    model, expected = build(ours), build(theirs)
    assert shapes(model) == shapes(expected)
    assert repr(model) == repr(expected)  # kernels, strides, groups, losses, …
    deformable = {key.split(".")[1] for key in shapes(model) if "conv_offset" in key}
    assert deformable == (set() if "pool" in path.stem else {"layer2", "layer3", "layer4"})
    for key in ("data_preprocessor", "train_cfg", "test_cfg"):
        assert without_scope(ours.model[key]) == without_scope(theirs.model[key]), key


@pytest.mark.parametrize("paper", PAPERS)
def test_index_has_the_published_figures(paper):
    """Lists MMDetection's configs of that name with the figures and weights of its metafile."""
    models = yaml.safe_load((CONFIGS / paper / "metafile.yml").read_text())["Models"]
    published = yaml.safe_load((MMDETS / paper / "metafile.yml").read_text())["Models"]
    published = {Path(model["Config"]).name: model for model in published}
    assert {Path(model["Config"]).name for model in models} == {p.name for p in (MMDETS / paper).glob("*.py")}
    for model in models:
        theirs = published[Path(model["Config"]).name]
        assert model.get("Alias", model["Name"]) == theirs["Name"] and model["Published"] == "MMDetection"
        assert (model["Results"], model["Weights"]) == (theirs["Results"], theirs["Weights"])
        assert model["Metadata"].items() >= theirs["Metadata"].items()


# configs/internimage and configs/flash_internimage


FOLDERS = ("internimage", "flash_internimage")
INTERN_IMAGE = sorted(path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.py"))
# From InternImage's model zoo: billions of operations for 800×1280 pixels
OPERATIONS = {"t": 270, "s": 340, "b": 501}


def size_of(path):
    return path.stem.split("internimage-")[1].split("_")[0]


def test_every_config_has_the_weights_and_the_layer_decay_of_its_model():
    models = {m.config.resolve(): m for m in index.models() if m.config.parent.name in FOLDERS}
    assert set(models) == set(INTERN_IMAGE)
    for path, model in models.items():
        cfg = Config.fromfile(path)
        backbone, decay = cfg.model.backbone, cfg.optim_wrapper.paramwise_cfg
        start = "flash_intern_image" if path.parent.name.startswith("flash") else "internimage"
        assert backbone.init_cfg.checkpoint.rsplit("/", 1)[1].startswith(f"{start}_{size_of(path)}_")
        if "constructor" in cfg.optim_wrapper:
            assert decay.depths == backbone.depths
        else:
            assert decay.custom_keys.backbone.lr_mult == 0.1 and path.stem.startswith("dino")
        name = Path(model.weights[0]).name.replace("_", "-")
        assert f"internimage-{size_of(path)}-" in name and path.stem.split("_")[-2] in name


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=() if size == "t" else pytest.mark.slow) for size in OPERATIONS]
)
def test_operations_are_the_published_within_3_percent(size):
    """Count all layers, for 1000 proposals and 100 masks, on the meta device.

    ``tools/analysis/get_flops.py``, which runs the detector, agrees within 0.1 %.
    """
    flops.register()
    path = CONFIGS / f"internimage/mask-rcnn_internimage-{size}_fpn_1x_coco.py"
    model = build(Config.fromfile(path)).eval()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        maps = model.neck(model.backbone(torch.empty(1, 3, 800, 1280)))
        model.rpn_head(maps)
        model.roi_head.bbox_head(torch.empty(1000, 256, 7, 7))
        model.roi_head.mask_head(torch.empty(100, 256, 14, 14))
    assert counter.get_total_flops() / 2e9 == pytest.approx(OPERATIONS[size], rel=0.03)


# Every other config of ours


VITS = ("dinov3", "vit_adapter")
OURS = [m for m in index.models() if m.package == "dcnzoo" and m.config.parent.name not in PAPERS]
# `make test-all` builds those of other sizes
SLOW = re.compile("augreg|dinov2|-b_|3x_coco|internimage-([sbl]|xl|h|g)_")


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=[pytest.mark.slow] * bool(SLOW.search(model.name))) for model in OURS],
    ids=lambda model: model.name,
)
def test_our_config_builds(model):
    """It has the number of parameters in its metafile, which is the authors' where they state it."""
    if model.config.parent.name in VITS:
        pytest.importorskip("timm", reason="timm is not installed: make setup installs it")
    parameters = sum(p.numel() for p in demo.build(Config.fromfile(model.config).model, "meta").parameters())
    assert parameters > 1e5
    expected = model.metadata.get("Parameters (M)")
    # the published 122 M of MAE's detector are not those of its config
    if expected and "mae" not in model.name:
        decimals = len(str(expected).partition(".")[2])
        assert round(parameters / 1e6, decimals) == expected


def test_vits_have_the_authors_settings():
    """Compare layer scale, layer decay and windows; the weights' address has the size and the schedule."""
    for model in (m for m in OURS if m.config.parent.name == "vit_adapter"):
        cfg = Config.fromfile(model.config)
        backbone, size = cfg.model.backbone, re.search(r"-([tsbl])_", model.name)[1]
        options = backbone.vit if isinstance(backbone.vit, dict) else dict(model_name=backbone.vit)
        assert (options.get("init_values") == 1.0) == (not re.search("mae|dinov2", model.name))
        assert len(backbone.window) == (24 if size == "l" else 12) and backbone.window.count(14) % 4 == 0
        decays = bool(re.search("augreg|dinov2|uni-perceiver", model.name))
        assert cfg.optim_wrapper.paramwise_cfg.get("num_layers") == (len(backbone.window) if decays else None)
        for address in model.weights:
            name = Path(address).name
            assert {"t": "tiny", "s": "small", "b": "base", "l": "large"}[size] in name
            assert model.name.split("_")[0].replace("-", "_") in name
            assert model.name.split("_")[-2].replace("lsj-", "").replace("e", "") in name
            assert re.search(r"adapter-([a-z]+)", model.name)[1] in name
