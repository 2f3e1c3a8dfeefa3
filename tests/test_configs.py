"""configs/dcn and configs/dcnv2: they build, and MMDetection's published weights fit them."""

from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

CONFIGS = Path(__file__).parents[1] / "configs"
PAPERS = ("dcn", "dcnv2")
FILES = sorted(path for paper in PAPERS for path in (CONFIGS / paper).glob("*.py"))


def parameters(cfg):
    cfg.model.backbone.init_cfg = None  # no download
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return {k: tuple(v.shape) for k, v in MODELS.build(cfg.model).state_dict().items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_is_mmdetections(path):
    """The same model as MMDetection's config of that name, which spells ``dcn`` out."""
    ours, theirs = Config.fromfile(path), get_config(f"mmdet::{path.parent.name}/{path.name}")
    assert ours.custom_imports.imports == ["dcnzoo.models"]
    ours.optim_wrapper.pop("_scope_")  # of `mmdet::`
    assert ours.optim_wrapper == theirs.optim_wrapper
    keys = parameters(ours)
    assert keys == parameters(theirs)
    assert "backbone.layer2.0.conv2.conv_offset.weight" in keys
    assert "backbone.layer1.0.conv2.conv_offset.weight" not in keys


@pytest.mark.parametrize("paper", PAPERS)
def test_index_is_complete(paper):
    index = yaml.safe_load((CONFIGS / paper / "metafile.yml").read_text())
    listed = {Path(model["Config"]) for model in index["Models"]}
    assert listed == {path.relative_to(CONFIGS.parent) for path in FILES if path.parent.name == paper}
    readme = (CONFIGS / paper / "README.md").read_text()
    for model in index["Models"]:
        assert model["Published"] is True
        assert f"]({Path(model['Config']).name})" in readme
        for result in model["Results"]:
            assert all(f"| {ap} |" in readme for ap in result["Metrics"].values())
