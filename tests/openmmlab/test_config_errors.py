"""Errors of everything that runs from a config name the file and the key."""

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.openmmlab.config_errors import config_errors
from dcnzoo.utils.errors import UserError


@pytest.mark.parametrize(("depth", "key"), [(51, "model.backbone"), (50, "model.bbox_head")])
def test_the_innermost_dictionary_is_named(tmp_path, depth, key):
    backbone, head = {"type": "ResNet", "depth": depth}, {"type": "RetinaHead"}
    file = tmp_path / "net.py"
    file.write_text(f"model = dict(type='RetinaNet', backbone={backbone}, neck=None, bbox_head={head})\n")
    cfg = Config.fromfile(file)
    with pytest.raises(UserError, match=rf"/net\.py: {key}: "), config_errors(cfg):
        MODELS.build(cfg.model)
