"""configs/dcn and configs/dcnv2 equal MMDetection's, and its published weights fit."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config

from dcnzoo.openmmlab.packages import mim_folder

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


LARGE = re.compile("x101|r101")  # they use the same code as the others; `make test-all` builds them


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
