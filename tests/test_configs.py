"""configs/: those of DCN equal MMDetection's; all build the layers that the zoo says they have."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.config import Config
from mmengine.hub import get_config
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo.models
import dcnzoo.ops  # noqa: F401  registers the counts of deformable operators
from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo import description, index

from . import demo
from .modules import shapes
from .processes import ROOT

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


LARGE = re.compile(
    "x101|r101|cascade|amp|group4"
)  # they use the same code as the others; `make test-all` builds them


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
    """Lists every config with the figures and weights of MMDetection's metafile, and their source."""
    index = yaml.safe_load((CONFIGS / paper / "metafile.yml").read_text())
    published = yaml.safe_load((MMDETS / paper / "metafile.yml").read_text())
    published = {Path(model["Config"]).name: model for model in published["Models"]}
    listed = {Path(model["Config"]): model for model in index["Models"]}
    paths = {path.relative_to(CONFIGS.parent) for path in FILES if path.parent.name == paper}
    assert set(listed) == paths and {path.name for path in paths} == {
        path.name for path in (MMDETS / paper).glob("*.py")
    }
    (collection,) = index["Collections"]
    for path, model in listed.items():
        theirs = published[path.name]
        assert model["Name"] == path.stem
        assert model["In Collection"] == collection["Name"]
        assert model.get("Alias", path.stem) == theirs["Name"]
        assert model["Published"] == "MMDetection"
        for key in ("Results", "Weights"):
            assert model[key] == theirs[key]
        for key, value in theirs["Metadata"].items():
            assert model["Metadata"][key] == value


# configs/internimage and configs/flash_internimage


FOLDERS = ("internimage", "flash_internimage")
INTERN_IMAGE = sorted(path for folder in FOLDERS for path in (CONFIGS / folder).glob("*.py"))
# From InternImage's model zoo: billions of operations for 800×1280 pixels
OPERATIONS = {"t": 270, "s": 340, "b": 501}


def size_of(path):
    return path.stem.split("internimage-")[1].split("_")[0]


@pytest.mark.parametrize("path", INTERN_IMAGE, ids=lambda path: path.stem)
def test_config(path):
    cfg = Config.fromfile(path)
    backbone = cfg.model.backbone
    dino, flash = path.stem.startswith("dino"), path.parent.name.startswith("flash")
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
    assert set(listed) == {path.relative_to(CONFIGS.parent) for path in INTERN_IMAGE}
    for path, model in listed.items():
        assert model["Published"] == "OpenGVLab"
        # the weights are those of the same model and schedule
        name = Path(model["Weights"]).name.replace("_", "-")
        assert f"internimage-{size_of(path)}-" in name and path.stem.split("_")[-2] in name


# Every model in the zoo has the operators that its description lists. More tests: tests/zoo


def build_listed(model: index.Model) -> torch.nn.Module:
    return demo.build(Config.fromfile(model.config).model, "meta")


# Their classes do not show the functions that SAC (detectors) and TOOD call, the teacher of LD, or
# RoI pooling. GLIP needs a language model. BoxInst and Swin cannot be built on the meta device.
OTHERS = ("boxinst", "detectors", "glip", "ld", "tood")


BUILT = [
    model
    for model in index.models()
    if model.package == "mmdet"
    and description.may_be_deformable(model.config)
    and model.config.parent.name not in OTHERS
    and not any(word in model.name for word in ("pool", "swin"))
]


# One family for each position and kind of operator, except those above. `make test-all` builds the others.
QUICK = ("atss", "cascade_rpn", "centernet", "foveabox", "gfl", "reppoints", "vfnet")
FIRST = {m.config.parent.name: m for m in reversed(BUILT) if m.config.parent.name in QUICK}.values()


@pytest.mark.parametrize(
    "model",
    [m if m in FIRST else pytest.param(m, marks=pytest.mark.slow) for m in BUILT],
    ids=lambda model: model.name,
)
def test_the_model_holds_what_the_config_is_said_to(model):
    layers = DeformConv2d | ModulatedDeformConv2d
    parts = {n.partition(".")[0] for n, m in build_listed(model).named_modules() if isinstance(m, layers)}
    parts = {part if part in ("backbone", "neck") else "head" for part in parts}
    assert parts == set(description.operators_of(model))


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
    """With the number of parameters of its metafile: the authors', where they state it."""
    if model.config.parent.name in VITS:
        pytest.importorskip("timm", reason="timm is not installed: make setup installs it")
    parameters = sum(p.numel() for p in build_listed(model).parameters())
    assert parameters > 1e5
    expected = model.metadata.get("Parameters (M)")
    # the published 122 M of MAE's detector are not those of its config
    if expected and "mae" not in model.name:
        decimals = len(str(expected).partition(".")[2])
        assert round(parameters / 1e6, decimals) == expected


def test_vits_have_the_authors_settings():
    """Layer scale of all but MAE; layer decay; windows; the address has the size and the schedule."""
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
