"""Configs by package: ``_base_ = 'dcnzoo::…'``, without pkg_resources."""

import sys

import pytest
import torch
from mmengine.config import Config

import dcnzoo.models  # noqa: F401  lets configs inherit from packages

# isort: split
from mmdet.registry import MODELS

from dcnzoo.utils.errors import UserError
from tests.helpers.patching import without

NAME = "dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"


@pytest.fixture
def config(tmp_path):
    def read(text):
        (tmp_path / "config.py").write_text(text)
        return Config.fromfile(tmp_path / "config.py")

    return read


def test_inherits(config, monkeypatch):
    """Configs inherit without pkg_resources. The scope stays mmdet: dcnzoo has no registries of its own."""
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    cfg = config(f"_base_ = 'dcnzoo::{NAME}'\nmodel = dict(backbone=dict(depth=101))")
    assert cfg.model.backbone.depth == 101 and cfg.model.backbone.dcn is True
    assert cfg.custom_imports.imports == ["dcnzoo.models"]
    cfg = config("_base_ = 'dcnzoo::demo/mask-rcnn_r14_fpn_8e_shapes.py'\nx = {{_base_.model}}")
    assert cfg.model._scope_ == "mmdet" and cfg.x._scope_ == "mmdet"
    for base, error, text in (
        ("nowhere::a/b.py", UserError, "nowhere"),
        ("torch::a/b.py", UserError, "torch"),
        ("dcnzoo::dcn/nothing.py", UserError, "configs/dcn/nothing.py"),
    ):
        with pytest.raises(error, match=text):
            config(f"_base_ = '{base}'")


def test_a_type_imports_no_module(package):
    """A type without a dot: mmengine imported a module of that name, such as a script in the folder."""
    package("train_it", "raise SystemExit('executed')")
    assert MODELS.get("train_it") is None
    with pytest.raises(KeyError, match="train_it"):
        MODELS.build(dict(type="train_it"))
    assert MODELS.get("torch.nn.ReLU") is MODELS.get("ReLU") is torch.nn.ReLU
    with without("types_import_no_modules"), pytest.raises(SystemExit, match="executed"):
        MODELS.get("train_it")
