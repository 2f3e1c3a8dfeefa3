"""Errors of everything that runs from a config name the file and the key."""

import pytest
from mmdet.registry import METRICS, MODELS, TRANSFORMS
from mmengine.config import Config

import dcnzoo.models
import dcnzoo.openmmlab.datasets  # noqa: F401
from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.utils.errors import UserError


@pytest.mark.parametrize(("depth", "key"), [(51, "model.backbone"), (50, "model.bbox_head")])
def test_the_innermost_dictionary_is_named(tmp_path, depth, key):
    backbone, head = {"type": "ResNet", "depth": depth}, {"type": "RetinaHead"}
    file = tmp_path / "net.py"
    file.write_text(f"model = dict(type='RetinaNet', backbone={backbone}, neck=None, bbox_head={head})\n")
    cfg = Config.fromfile(file)
    with pytest.raises(UserError, match=rf"/net\.py: {key}: "), config_errors(cfg):
        MODELS.build(cfg.model)


@pytest.mark.parametrize(
    ("settings", "build"),
    [
        ({"type": "CocoMetric", "no_such_key": 1}, METRICS.build),
        ({"type": "FlashInternImage", "cls_scale": [None]}, MODELS.build),
    ],
)
def test_a_mistake_in_a_setting_of_dcnzoo_is_no_error_in_dcnzoo(settings, build):
    """Also if the code that fails is dcnzoo's, or torch's when dcnzoo calls it."""
    cfg = Config({"part": settings}, filename=__file__)
    with pytest.raises(UserError, match=": part: ") as error, config_errors(cfg):
        build(cfg.part)
    assert "error in dcnzoo" not in str(error.value)


def test_a_dictionary_that_a_class_makes_is_not_another_one_of_the_config():
    """RandomResize builds a Resize of its settings, which looks like the one of the test."""
    step = {"type": "RandomResize", "scale": [(64, 64), (96, 96)], "keep_ratio": True, "keep_rato": True}
    settings = {"train_dataloader": {"dataset": {"pipeline": [step]}}}
    settings["test_pipeline"] = [{"type": "Resize", "scale": (64, 64), "keep_ratio": True}]
    cfg = Config(settings, filename=__file__)
    with (
        pytest.raises(UserError, match=r": train_dataloader\.dataset\.pipeline\.0: .*keep_rato"),
        config_errors(cfg),
    ):
        TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[0])
