"""Mistakes in configs, by a generator: each is a path, and the value that is set there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

import dcnzoo.zoo.config_writer  # noqa: F401  takes read_config_file by name, which refused() replaces
from dcnzoo.openmmlab.config.read import OLD_KEYS
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.runs import recipe

from ..commands import invoke

# dictionaries whose keys are chosen by the user or by mmcv's layers, which take some of them out
FREE = {"norm_cfg", "conv_cfg", "act_cfg", "init_cfg", "custom_keys", "default_hooks", "metainfo"}
FREE |= {"backend_args", "_scope_"}
DELETED = object()  # in place of a value
# parts of the configs whose keys and types are misspelt, each in turn, and their dictionaries without a type
PARTS = (
    "model", "train_dataloader", "val_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler",
    "train_cfg", "default_hooks", "custom_hooks", "env_cfg",
)  # fmt: skip
UNTYPED = re.compile(r"(dataloader|optim_wrapper|clip_grad|env_cfg|model\.(train|test)_cfg(\.\w+)*)$")
# The check does not know these: classes that get them from another class refuse them when they are built.
PASSED_ON = ("model.encoder", "model.decoder", "custom_hooks")
VALUES: dict[str, tuple[Any, ...]] = {  # path → values that are no possible ones
    "train_cfg.max_epochs": (-1, 1.5, "ten", [3]),
    "train_cfg.val_interval": (0, "1"),
    "train_cfg": (3, "EpochBasedTrainLoop", []),
    "val_cfg": ({"type": "ValLop"},),
    "train_dataloader": ("coco", 4),
    "train_dataloader.batch_size": (-2, 2.5, 4.0, "2", True),
    "train_dataloader.num_workers": (-1, "all"),
    "train_dataloader.persistent_workers": ("False",),
    "train_dataloader.drop_last": ("no",),
    "train_dataloader.prefetch_factor": (0,),
    "train_dataloader.sampler": ({"type": "DefaultSampler", "shuffel": True},),
    "train_dataloader.dataset.data_root": (3, ["a"]),
    "train_dataloader.dataset.ann_file": (7, ["a.json"]),
    "train_dataloader.dataset.filter_cfg.min_size": (-1, "32"),
    "train_dataloader.dataset.filter_cfg.filter_empty_gt": ("False",),
    "train_dataloader.dataset.filter_cfg.min_sise": (32,),
    "train_dataloader.dataset.test_mode": ("yes",),
    "train_dataloader.dataset.metainfo": ({"classes": "person"},),
    "train_dataloader.dataset": ({"type": "RepeatDataset", "times": 0, "dataset": {"type": "CocoDataset"}},),
    "val_evaluator.ann_file": (3,),
    "val_evaluator.classwize": (True,),
    "optim_wrapper.accumulative_counts": (1.5, 0, -4, "4"),
    "optim_wrapper.clip_grad": (
        {"max_norm": 0},
        {"max_norm": -1},
        {"max_nrom": 1},
        {"type": "value", "clip_value": 0},
    ),
    "optim_wrapper.optimizer.lr": (-1, "1e-3", True, float("nan")),
    "resume": ("no", "maybe"),
    "optim_wrapper.optimizer.weight_decay": (-1e-4, "0"),
    "optim_wrapper.optimizer.learning_rate": (0.1,),
    "optim_wrapper.paramwise_cfg": (
        {"custom_keys": {"backbone": {"lr_mul": 0.0}}},
        {"custom_keys": {"backbone": {"lr_mult": -1}}},
        {"bias_lr_mul": 2},
        {"norm_decay_mult": -1},
        {"bias_decay_mult": "0"},
    ),
    "optim_wrapper.loss_scale": ("static",),
    "optim_wrapper.type": ("AmpOptimWraper", "OptimWrappper"),
    "param_scheduler": (
        [{"type": "CosineAnnealingLR", "T_max": 0, "eta_min": 0}],
        [{"type": "CosineAnnealingLR", "T_max": -5}],
        [{"type": "CosineAnnealingLR", "T_max": 2.5}],
        [{"type": "CosineAnnealingLR", "T_mx": 8}],
        [{"type": "CosineAnnealingLR", "T_max": 8, "eta_min": -1}],
        [{"type": "StepLR", "step_size": 0}],
        [{"type": "StepLR", "step_size": 3, "gamma": 0}],
        [{"type": "StepLR", "step_size": 3, "gamma": "0.1"}],
        [{"type": "MultiStepLR", "milestones": [-8, 11]}],
        [{"type": "MultiStepLR", "milestones": [8.5]}],
        [{"type": "MultiStepLR", "milestones": [8], "by_epoch": "False"}],
        [{"type": "MultiStepLR", "milestones": "8,11"}],
        [{"type": "PolyLR", "power": -1}],
        [{"type": "OneCycleLR", "eta_max": 0.1, "total_steps": 0}],
        [{"type": "CosineRestartLR", "periods": [0, 5], "eta_min": 0}],
        [{"type": "ReduceOnPlateauLR", "rule": "biggest"}],
        [{"type": "ReduceOnPlateauLR", "patience": -1}],
        [{"type": "LinearLr", "start_factor": 0.1}],
        [{"type": "LinearLR", "start_factor": 0.1, "begin": -1}],
    ),
    "custom_hooks": (
        [{"type": "EarlyStoppingHook", "monitor": "coco/mAP"}],
        [{"type": "EarlyStoppingHook", "monitor": "bbox_mAP"}],
        [{"type": "EarlyStoppingHook", "monitor": "coco/bbox_mAP", "patience": 0}],
        [{"type": "EarlyStoppingHook", "monitor": "coco/bbox_mAP", "patience": "5"}],
        [{"type": "EarlyStoppingHook", "monitor": "coco/bbox_mAP", "rule": "biggest"}],
        [{"type": "EarlyStoppingHook", "monitor": "coco/bbox_mAP", "pacience": 5}],
        [{"type": "EMAHok"}],
        [{"type": "EMAHook", "interval": 0}],
        [{"type": "YOLOXModeSwitchHook", "num_last_epochs": -15}],
    ),
    "default_hooks.checkpoint": (
        {"type": "CheckpointHook", "interval": -2},
        {"type": "CheckpointHook", "interval": "1"},
        {"type": "CheckpointHook", "save_best": "coco/bbox_map"},
        {"type": "CheckpointHook", "save_best": "bbox"},
        {"type": "CheckpointHook", "save_best": ["coco/bbox_mAP", "coco/segm"]},
        {"type": "CheckpointHook", "save_best": "auto", "rule": "bigger"},
        {"type": "CheckpointHook", "max_keep_ckpt": 3},
    ),
    "default_hooks.logger": ({"type": "LoggerHook", "interval": 0}, {"type": "LoggerHok"}),
    "log_processor": (
        {"type": "LogProcessor", "window_size": 0},
        {"windows_size": 5},
        {"window_size": "epoch"},
    ),
    "auto_scale_lr": ({"enable": "False", "base_batch_size": 16}, {"enable": True, "base_batch_size": 0}),
    "randomness": ({"sed": 3}, {"seed": "three"}, {"seed": 1, "determinstic": True}),
    "env_cfg.cudnn_benchmark": ("False",),
    "env_cfg.mp_cfg": ({"mp_start_metod": "fork"}, {"opencv_num_threads": "all"}),
    "visualizer": ({"type": "DetLocalVisualiser"},),
    "load_from": (3, "no/such.pth"),
    "work_dir": (5,),
    "model": ("MaskRCNN", 3, []),
    "model.data_preprocessor": ("DetDataPreprocessor", 3),
    "model.data_preprocessor.std": ([58.0, 0.0, 57.0], "1"),
    "model.data_preprocessor.pad_size_divisor": (0, "32"),
    "model.data_preprocessor.bgr_to_rgb": ("False",),
    "model.backbone": ("ResNet", 50),
    "model.backbone.frozen_stages": (-2, "1"),
    "model.backbone.norm_eval": ("False",),
    "model.backbone.stage_with_dcn": ("True", ["False", "True", "True", "True"]),
    "model.neck.num_outs": (0, "5", -1),
    "model.neck.in_channels": ("64",),
    "model.neck.out_channels": (0, "256"),
    "model.rpn_head.anchor_generator.scales": ([0], [-8], ["8"]),
    "model.rpn_head.anchor_generator.ratios": ([0.5, 0.0, 2.0], "1"),
    "model.rpn_head.anchor_generator.strides": ([4, 8, 16, 32, -64],),
    "model.rpn_head.loss_cls.loss_weight": (-1, "1"),
    "model.rpn_head.loss_bbox.loss_weight": (-0.5,),
    "model.rpn_head.feat_channels": (0,),
    "model.roi_head.bbox_head.num_classes": (0, "80", 79),
    "model.roi_head.bbox_head.roi_feat_size": (0, "7"),
    "model.roi_head.bbox_head.reg_class_agnostic": ("no",),
    "model.roi_head.bbox_roi_extractor.roi_layer.output_size": (0, "7"),
    "model.roi_head.bbox_roi_extractor.featmap_strides": ([4, 8, 0, 32],),
    "model.train_cfg.rpn.assigner.pos_iou_thr": (1.7, -0.1, "0.7"),
    "model.train_cfg.rcnn.assigner.min_pos_iou": (50,),
    "model.train_cfg.rcnn.sampler.num": (0, "512"),
    "model.train_cfg.rcnn.sampler.pos_fraction": (1.25, "quarter"),
    "model.test_cfg.rcnn.score_thr": (5, "0.05", float("nan")),
    "model.test_cfg.rcnn.nms.iou_threshold": (50, "0.5"),
    "model.test_cfg.rpn.nms.iou_threshold": (-0.7,),
    "model.test_cfg.rcnn.nms.iou_treshold": (0.5,),
    "model.test_cfg.rcnn.scor_thr": (0.3,),
    "model.test_cfg.rcnn.max_per_image": (100,),
}
STEPS = (  # of the pipeline, at its second place
    {"type": "Resize", "scale": (-1333, 800)},
    {"type": "Resize", "scale": (1333, 0), "keep_ratio": True},
    {"type": "Resize", "scale": "1333,800"},
    {"type": "Resize", "scale": (1333, 800), "keep_ratio": "True"},
    {"type": "Resize", "scale_factor": 0},
    {"type": "Resize", "img_scale": (1333, 800)},
    {"type": "RandomResize", "scale": (1333, 800), "ratio_range": (0.0, 2.0)},
    {"type": "RandomResize", "scale": [(-2, 3), (4, 5)]},
    {"type": "RandomChoiceResize", "scales": [(1333, 640), (1333, -800)]},
    {"type": "RandomFlip", "prob": 1.5},
    {"type": "RandomFlip", "prob": "0.5"},
    {"type": "RandomFlip", "flip_ratio": 0.5},
    {"type": "RandomFlip", "prob": [0.5, -0.5], "direction": ["horizontal", "vertical"]},
    {"type": "RandomCrop", "crop_size": (0, 384)},
    {"type": "RandomCrop", "crop_size": (-384, 384)},
    {"type": "RandomCrop", "crop_sise": (384, 384)},
    {"type": "Pad", "size_divisor": 0},
    {"type": "Pad", "size_divisor": "32"},
    {"type": "LoadAnnotations", "with_bbox": "False"},
    {"type": "LoadAnnotations", "with_masks": True},
    {"type": "LoadAnnotation"},
    {"type": "PhotoMetricDistorsion"},
    {"type": "Mosaic", "img_scale": (0, 640)},
    {"type": "Mosaic", "prob": 2.0},
    {"type": "MixUp", "ratio_range": (-0.5, 1.5)},
    {"type": "CutOut", "n_hole": 3},
    {"type": "YOLOXHSVRandomAug", "hue_detla": 5},
    {"type": "CachedMosaic", "img_scale": (640, 640), "max_cached_image": 4},
    {"type": "RandomAffine", "max_rotate_degre": 10},
)


def mistakes(cfg: Config) -> Iterator[tuple[str, object]]:
    """Yield the mistakes that can be made in a config."""
    for path, values in VALUES.items():
        if "." not in path or isinstance(_at(cfg, path.rpartition(".")[0]), dict):
            yield from ((path, value) for value in values)
    if isinstance(_at(cfg, "train_dataloader.dataset.pipeline"), list):
        yield from (("train_dataloader.dataset.pipeline.1", step) for step in STEPS)
    for key in OLD_KEYS:
        yield key, "x" if key == "resume_from" else {"type": 1}
    for part in PARTS:
        for path, node in dicts(cfg.get(part), part):
            kind = node.get("type", "")
            if FREE & {*path.split(".")} - {"default_hooks"} or not (kind or UNTYPED.search(path)):
                continue
            for key in node.keys() - FREE - {"type"} if not path.startswith(PASSED_ON) else ():
                yield f"{path}.{misspelt(key)}", node[key]
            if len(kind) > 4 and kind not in ("DefaultSampler", "AspectRatioBatchSampler"):
                yield f"{path}.type", misspelt(kind)


def misspelt(word: str) -> str:
    """Return another word with the same letters: without the one before the last, or with one more."""
    return f"{word[:-2]}{word[-1]}" if len(word) > 4 else f"{word}{word[-1]}"


def make(cfg: Config, path: str, value: object) -> None:
    """Make a mistake."""
    outer, _, key = path.rpartition(".")
    node: Any = _at(cfg, outer) if outer else cfg
    if not outer and key not in cfg:  # a name that the config's text does not set may be a variable of a base
        object.__setattr__(cfg, "_text", f"{key} = {value!r}\n{cfg.text}")
    if value is DELETED:
        node.pop(key)
    else:
        node[int(key) if isinstance(node, list) else key] = value


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, cfg: Config) -> list[str]:
    """Return the lines of the error of a training: status 1, one to three lines, none of them a traceback."""
    file = folder / "mine.py"
    file.touch()
    object.__setattr__(cfg, "_filename", "mine.py")
    monkeypatch.setattr(recipe, "read_config_file", lambda *args: cfg)
    status, output = invoke("train", file, "--work-dir", folder / "work")
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 1 and 1 <= len(lines) <= 3 and "Traceback" not in output, output
    assert "AssertionError" not in output
    return lines


def _at(cfg: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(cfg, list):
            cfg = cfg[int(key)] if key.isdigit() else None
        else:
            cfg = cfg.get(key) if hasattr(cfg, "get") else None
    return cfg
