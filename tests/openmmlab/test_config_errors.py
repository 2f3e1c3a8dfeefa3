"""The place of a mistake in a config: an error names the dictionary from which the failing part was built."""

import pickle
import re
from collections import OrderedDict

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

import dcnzoo
from dcnzoo.openmmlab.config.errors import config_errors, with_paths
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs.build import build_model, build_runner
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.source import resolve
from tests.helpers.demo import write_tiny_config

CASCADE = "cascade-rcnn_r50_fpn_1x_coco"
MASK = "mask-rcnn_r50_fpn_1x_coco"
HEAD, MASK_HEAD = "model.roi_head.bbox_head", "model.roi_head.mask_head"
TRAIN, VAL, TEST = (f"{part}_dataloader.dataset" for part in ("train", "val", "test"))
# base, setting with the mistake, its value, the path that the error names
OF_MODELS = [
    (CASCADE, f"{HEAD}.0.num_classess", 3, f"{HEAD}.0"),
    (CASCADE, f"{HEAD}.1.num_classess", 3, f"{HEAD}.1"),
    (CASCADE, f"{HEAD}.2.num_classess", 3, f"{HEAD}.2"),
    (CASCADE, f"{HEAD}.2.loss_cls.loss_weigth", 3, f"{HEAD}.2.loss_cls"),
    (CASCADE, f"{HEAD}.1.loss_bbox.type", "SmoothL2Loss", f"{HEAD}.1.loss_bbox"),
    (CASCADE, f"{HEAD}.1.bbox_coder.type", "XYWH", f"{HEAD}.1.bbox_coder"),
    (CASCADE, "model.train_cfg.rcnn.1.assigner.pos_iou", 0.6, "model.train_cfg.rcnn.1.assigner"),
    (CASCADE, "model.train_cfg.rcnn.2.sampler.type", "RandomSampel", "model.train_cfg.rcnn.2.sampler"),
    (CASCADE, "model.rpn_head.anchor_generator.scale", 3, "model.rpn_head.anchor_generator"),
    (CASCADE, "model.rpn_head.loss_cls.use_sigmoids", True, "model.rpn_head.loss_cls"),
    (CASCADE, "model.train_cfg.rpn.assigner.type", "MaxIoU", "model.train_cfg.rpn.assigner"),
    (MASK, "model.roi_head.mask_roi_extractor.out_channel", 3, "model.roi_head.mask_roi_extractor"),
    (MASK, "model.roi_head.bbox_roi_extractor.out_channel", 3, "model.roi_head.bbox_roi_extractor"),
    (MASK, f"{MASK_HEAD}.loss_mask.wieght", 3, f"{MASK_HEAD}.loss_mask"),
    (MASK, f"{MASK_HEAD}.in_channel", 3, MASK_HEAD),
    (MASK, f"{MASK_HEAD}.type", "FCNMaskHeat", MASK_HEAD),
    (MASK, "model.backbone.norm", 3, "model.backbone"),
    (MASK, "model.neck.type", "FPNN", "model.neck"),
    (MASK, "model.neck.start_levels", 1, "model.neck"),
    (MASK, "model.data_preprocessor.means", [1, 2, 3], "model.data_preprocessor"),
    (MASK, "model.train_cfgs", {}, "model"),
]
OF_TRAININGS = [
    (f"{TRAIN}.pipeline.0.to_float", True, f"{TRAIN}.pipeline.0"),
    (f"{TRAIN}.pipeline.1.with_box", True, f"{TRAIN}.pipeline.1"),
    (f"{TRAIN}.pipeline.1.type", "LoadAnnotation", f"{TRAIN}.pipeline.1"),
    (f"{VAL}.pipeline.0.to_float", True, f"{VAL}.pipeline.0"),
    (f"{VAL}.pipeline.0.type", "LoadImage", f"{VAL}.pipeline.0"),
    (f"{TRAIN}.ann_files", "x.json", TRAIN),
    (f"{VAL}.ann_files", "x.json", VAL),
    (f"{VAL}.type", "CocoDatasets", VAL),
    ("train_dataloader.sampler.shufle", True, "train_dataloader.sampler"),
    ("val_dataloader.sampler.shufle", True, "val_dataloader.sampler"),
    ("train_dataloader.batch_sizes", 3, "train_dataloader"),
    ("val_dataloader.batch_sizes", 3, "val_dataloader"),
    ("val_evaluator.metrics", "bbox", "val_evaluator"),
    ("val_evaluator.type", "CocoMetrics", "val_evaluator"),
    ("val_evaluator.metric", "boxes", "val_evaluator"),
    ("optim_wrapper.optimizer.learning_rate", 1, "optim_wrapper.optimizer"),
    ("optim_wrapper.optimizer.type", "SDG", "optim_wrapper"),
    ("param_scheduler.0.stop", 5, "param_scheduler.0"),
    ("param_scheduler.1.type", "MultiStep", "param_scheduler.1"),
    ("default_hooks.timer.intervals", 5, "default_hooks.timer"),
    ("default_hooks.logger.intervals", 5, "default_hooks.logger"),
    ("custom_hooks.1.type", "EMA", "custom_hooks.1"),
    ("custom_hooks.0.type", "EMA", "custom_hooks.0"),
    ("train_cfg.max_epoch", 5, "train_cfg"),
    ("visualizer.names", "x", "visualizer"),
]


@pytest.mark.parametrize(("name", "key", "value", "expected"), OF_MODELS)
def test_of_a_model(name, key, value, expected):
    recipe = resolve(name).recipe({key: value})
    with pytest.raises(UserError, match=rf": {re.escape(expected)}: "), torch.device("meta"):
        build_model(recipe)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    hooks = [{"type": "EMAHook"}, {"type": "EMAHook"}]
    path = write_tiny_config(folder / "small.py", folder / "data", train=4, val=2)
    dcnzoo.train(path, work_dir=folder / "drawn", dry_run=True)
    cfg = Config.fromfile(path)
    cfg.custom_hooks = hooks
    cfg.dump(path)
    return path


@pytest.mark.parametrize(("key", "value", "expected"), OF_TRAININGS)
def test_of_a_training(config, tmp_path, key, value, expected):
    with pytest.raises(UserError, match=rf"^(\S*small\.py: )?{re.escape(expected)}: "):
        dcnzoo.train(config, work_dir=tmp_path, cfg_options={key: value}, dry_run=True)


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("no")


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_of_a_module_that_runs(wrap):
    """A parallel wrapper, as of MMEngine's distributed training, is no part of the config."""
    model = nn.Sequential(OrderedDict(neck=nn.Sequential(nn.ReLU(), Failing())))
    with pytest.raises(UserError, match=r"^model\.neck\.1: no"), config_errors(Config({})):
        wrap(model)(torch.zeros(1))


def test_equal_dictionaries_of_a_class_are_all_named():
    """``type`` is a class, which cannot have a path."""
    head = {"type": MODELS.get("mmdet.CrossEntropyLoss"), "loss_weight": 1.0, "wrong": 3}
    cfg = Config({"a": dict(head), "b": dict(head)})
    with pytest.raises(UserError, match=r"^a or b: "), config_errors(cfg):
        MODELS.build(with_paths(cfg).b)


def test_the_runner_has_the_plain_config(config, tmp_path):
    """Hooks and tools read, dump and save it."""
    run = Recipe.read(config, {}, TRAINING).with_options(TrainOptions(work_dir=tmp_path, device="cpu"))
    with DefaultScope.overwrite_default_scope("mmdet"):
        runner = build_runner(run.cfg, Start(), training=run)
    runner.cfg.dump(tmp_path / "plain.yml")
    assert "TypeName" not in (tmp_path / "plain.yml").read_text()
    torch.save({"model": runner.cfg.model.to_dict()}, tmp_path / "plain.pth")
    assert torch.load(tmp_path / "plain.pth", weights_only=True)["model"] == run.cfg.model.to_dict()
    paths = pickle.loads(pickle.dumps(with_paths(run.cfg).model.neck["type"]))
    assert (paths, paths.path) == ("FPN", ".model.neck"), "workers that are spawned get the data set's config"
