"""configs/dcn and configs/dcnv2: they are MMDetection's, and its published weights fit them."""

from pathlib import Path

import mmdet
import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

CONFIGS = Path(__file__).parents[1] / "configs"
MMDETS = Path(mmdet.__file__).parent / ".mim" / "configs"
PAPERS = ("dcn", "dcnv2")
FILES = sorted(path for paper in PAPERS for path in (CONFIGS / paper).glob("*.py"))


def build(cfg):
    cfg.model.backbone.init_cfg = None  # no download
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return MODELS.build(cfg.model)


def without_scope(node):
    """A part of a config without the notes that ``mmdet::`` leaves in it."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != "_scope_"}
    return [without_scope(value) for value in node] if isinstance(node, list) else node


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_mmdetections(path):
    """The same in everything as MMDetection's config of that name, which spells ``dcn`` out."""
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
def test_all_of_mmdetections_are_there(paper):
    assert {path.name for path in FILES if path.parent.name == paper} == {
        path.name for path in (MMDETS / paper).glob("*.py")
    }


@pytest.mark.parametrize("paper", PAPERS)
def test_index_has_the_published_figures(paper):
    """Every config, with the figures and weights of MMDetection's metafile, and whose they are."""
    index = yaml.safe_load((CONFIGS / paper / "metafile.yml").read_text())
    published = yaml.safe_load((MMDETS / paper / "metafile.yml").read_text())
    published = {Path(model["Config"]).name: model for model in published["Models"]}
    listed = {Path(model["Config"]): model for model in index["Models"]}
    assert set(listed) == {path.relative_to(CONFIGS.parent) for path in FILES if path.parent.name == paper}
    readme = (CONFIGS / paper / "README.md").read_text()
    (collection,) = index["Collections"]
    for path, model in listed.items():
        theirs = published[path.name]
        assert model["Name"] == path.stem
        assert model["In Collection"] == collection["Name"]
        assert model.get("Alias", path.stem) == theirs["Name"]
        assert model["Published"] == "MMDetection"
        for key in ("Metadata", "Results", "Weights"):
            assert model[key] == theirs[key]
        (row,) = [line for line in readme.splitlines() if f"]({path.name})" in line]
        figures = [value for result in model["Results"] for value in result["Metrics"].values()]
        memory = model["Metadata"]["Training Memory (GB)"]
        assert all(f"| {figure} |" in row for figure in (memory, *figures))
        assert "| published |" in row and f"]({model['Weights']})" in row
