"""configs/dcn and configs/dcnv2 equal MMDetection's, and its published weights fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
import yaml

from dcnzoo.data.shapes import CLASSES, ShapesSpec, make_shapes

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

from .modules import shapes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
MIM = Path(mmdet.__file__).parent / ".mim"
MMDETS = MIM / "configs"
PAPERS = ("dcn", "dcnv2")
FILES = sorted(path for paper in PAPERS for path in (CONFIGS / paper).glob("*.py"))


def build(cfg):
    cfg.model.backbone.init_cfg = None  # no download
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return MODELS.build(cfg.model)


def without_scope(node):
    """A part of a config without the ``_scope_`` entries from ``mmdet::``."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != "_scope_"}
    return [without_scope(value) for value in node] if isinstance(node, list) else node


LARGE = re.compile("x101|r101")  # they use the same code as the others; `make test-all` builds them


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * bool(LARGE.search(p.stem))) for p in FILES],
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


@pytest.mark.slow
def test_your_own_data_with_mmdetections_own_tool(tmp_path):
    """The hand-written config of docs/train_your_data.md, in which only ``custom_imports`` names dcnzoo."""
    page = (ROOT / "docs" / "train_your_data.md").read_text()
    (recipe,) = (b for b in re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M) if "hazelnut" in b)
    assert '("date", "fig", "hazelnut")' in recipe and recipe.count("dcnzoo") == 1
    (tmp_path / "fruits.py").write_text(recipe.replace('("date", "fig", "hazelnut")', repr(CLASSES)))

    make_shapes(tmp_path / "shapes", ShapesSpec(train=2, val=1))
    data = tmp_path / "data" / "fruits"
    data.mkdir(parents=True)
    (data / "images").symlink_to(tmp_path / "shapes" / "train")
    for part in ("train.json", "val.json"):
        (data / part).symlink_to(tmp_path / "shapes" / "annotations" / "train.json")

    settings = ["train_cfg.max_epochs=1", "model.backbone.init_cfg=None"]
    for loader, resize in (("train_dataloader", 2), ("val_dataloader", 1)):
        settings += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
        settings += [f"{loader}.dataset.pipeline.{resize}.scale=(128,128)"]
    result = subprocess.run(
        [sys.executable, MIM / "tools" / "train.py", "fruits.py", "--cfg-options", *settings],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "coco/segm_mAP" in result.stdout + result.stderr
    checkpoint = torch.load(tmp_path / "work_dirs/fruits/epoch_1.pth", weights_only=False)
    weights = checkpoint["state_dict"]
    assert weights["backbone.layer2.0.conv2.conv_offset.weight"].shape == (27, 128, 3, 3)
    assert weights["roi_head.mask_head.conv_logits.weight"].shape == (3, 256, 1, 1)
