"""Errors of everything that runs from a config name the file and the key."""

import pytest
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from torch.nn.utils import clip_grad_norm_

import dcnzoo.models
import dcnzoo.openmmlab.datasets  # noqa: F401
from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.utils.errors import UserError


@pytest.mark.parametrize(("depth", "key"), [(51, "model.backbone.depth"), (50, "model.bbox_head")])
def test_the_innermost_dictionary_is_named(tmp_path, depth, key):
    backbone, head = {"type": "ResNet", "depth": depth}, {"type": "RetinaHead"}
    file = tmp_path / "net.py"
    file.write_text(f"model = dict(type='RetinaNet', backbone={backbone}, neck=None, bbox_head={head})\n")
    cfg = Config.fromfile(file)
    with pytest.raises(UserError, match=rf"/net\.py: {key}: "), config_errors(cfg):
        MODELS.build(cfg.model)


def test_an_unknown_setting_of_a_class_of_dcnzoo():
    evaluator = {"type": "CocoMetric", "no_such_key": 1}
    cfg = Config({"test_evaluator": evaluator}, filename=__file__)
    with pytest.raises(UserError) as error, config_errors(cfg), DefaultScope.overwrite_default_scope("mmdet"):
        Evaluator([evaluator])
    assert "no_such_key" in str(error.value) and "error in dcnzoo" not in str(error.value)


def test_settings_of_the_base_that_another_class_does_not_have(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
        "model = dict(backbone=dict(type='SwinTransformer', depths=[2, 2, 6, 2], init_cfg=None))"
    )
    cfg = Config.fromfile(file)
    with (
        pytest.raises(UserError, match=r"model\.backbone: SwinTransformer .*depth; _delete_=True drops"),
        config_errors(cfg),
        DefaultScope.overwrite_default_scope("mmdet"),
    ):
        MODELS.build(cfg.model)


@pytest.mark.parametrize(
    ("settings", "build"),
    [
        ({"type": "FlashInternImage", "cls_scale": [None]}, MODELS.build),
        ({"type": "FlashInternImage", "in_chans": "x"}, MODELS.build),
        ({"max_norm": {}}, lambda clip: clip_grad_norm_([torch.zeros(1, requires_grad=True)], **clip)),
    ],
)
def test_a_value_of_another_type_is_no_error_in_dcnzoo(settings, build):
    """Also if the code that fails is dcnzoo's, or torch's when dcnzoo calls it."""
    cfg, key = Config({"part": settings}, filename=__file__), [*settings][-1]
    with pytest.raises(UserError, match=rf": part\.{key}: ") as error, config_errors(cfg):
        build(cfg.part)
    assert "error in dcnzoo" not in str(error.value)


def test_a_dictionary_that_a_class_makes_is_not_another_one_of_the_config():
    """RandomResize builds a Resize of its settings, which looks like the one of the test."""
    step = {"type": "RandomResize", "scale": [(64, 64), (96, 96)], "keep_ratio": True, "keep_rato": True}
    settings = {"train_dataloader": {"dataset": {"pipeline": [step]}}}
    settings["test_pipeline"] = [{"type": "Resize", "scale": (64, 64), "keep_ratio": True}]
    cfg = Config(settings, filename=__file__)
    with (
        pytest.raises(UserError, match=r": train_dataloader\.dataset\.pipeline\.0\.keep_rato: .*keep_ratio"),
        config_errors(cfg),
    ):
        TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[0])


@pytest.mark.parametrize(
    ("neck", "key"),
    [
        ({"num_outs": "five"}, "num_outs"),  # in the comparison that fails
        ({"num_outs": 1}, "num_outs"),  # in an assertion
        ({"out_channels": "eight"}, "out_channels"),  # in torch's code
        ({"norm_cfg": {"type": "BatchNorm"}}, r"norm_cfg\.type"),  # None in place of a class
    ],
)
def test_the_setting_in_the_line_that_failed_is_named(neck, key):
    settings = {"type": "FPN", "in_channels": [8, 8], "out_channels": 8, "num_outs": 2, **neck}
    cfg = Config({"model": {"neck": settings}}, filename=__file__)
    with pytest.raises(UserError, match=rf": model\.neck\.{key}: "), config_errors(cfg):
        MODELS.build(cfg.model.neck)


def test_another_setting_in_an_outer_line_is_not_named():
    """``self.build_roi_layers(roi_layer, featmap_strides)``: the first one fails."""
    layer = {"type": "RoIAlig", "output_size": 7}
    roi = {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": 8, "featmap_strides": [4]}
    cfg = Config({"model": {"roi": roi}}, filename=__file__)
    with pytest.raises(UserError, match=r": model\.roi: .*RoIAlig"), config_errors(cfg):
        MODELS.build(cfg.model.roi)


def test_the_dictionary_of_a_misspelt_type_is_named():
    """A head builds the assigner, which is in another part of the config."""
    head = {"type": "RPNHead", "in_channels": 8}
    train_cfg = {"assigner": {"type": "MaxIoUAssignr"}, "sampler": {"type": "RandomSampler"}}
    cfg = Config({"model": {"rpn_head": head, "train_cfg": {"rpn": train_cfg}}}, filename=__file__)
    expected = r": model\.train_cfg\.rpn\.assigner\.type: expected MaxIoUAssigner"
    with pytest.raises(UserError, match=expected), config_errors(cfg):
        MODELS.build(cfg.model.rpn_head, default_args={"train_cfg": cfg.model.train_cfg.rpn})


def test_a_setting_that_the_message_has():
    """Where nothing was built from a dictionary of the config."""

    def clip(norm_type):
        return float(norm_type)

    cfg = Config({"clip_grad": {"max_norm": 1, "norm_type": "L2"}}, filename=__file__)
    with pytest.raises(UserError, match=r": clip_grad\.norm_type: "), config_errors(cfg):
        clip(**{"norm_type": cfg.clip_grad.norm_type})
