"""The demo's configs, shortened to trainings of seconds, and functions that build models."""

import re
from pathlib import Path

import torch

import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from tests.helpers.processes import ROOT

PLAIN = str(ROOT / "configs/demo/mask-rcnn_r14_fpn_8e_shapes.py")
DEFORMABLE = str(ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py")


def build(model: ConfigDict, device: str = "cpu") -> torch.nn.Module:
    """A model of MMDetection. On the device ``meta``, it needs no memory for its parameters."""
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device(device):
        return MODELS.build(model)


def build_demo() -> torch.nn.Module:
    """The deformable detector, always with the same weights."""
    torch.manual_seed(0)
    return build(Config.fromfile(DEFORMABLE).model)


def small_settings(data: Path, train: int = 8, val: int = 5, epochs: int = 1, **more: object) -> dict:
    """Settings with which the demo's configs train in seconds, on pictures drawn in ``data``.

    ``more`` are other settings, with ``__`` for each dot of their names.
    """
    settings = {
        "train_cfg.max_epochs": epochs,
        "train_dataloader.batch_size": 2,
        "default_hooks.logger.interval": 1,
        # briefly trained boxes score low; keep them for the comparison
        "model.test_cfg.rcnn.score_thr": 0.0,
        "val_evaluator.ann_file": f"{data}/annotations/val.json",
        "test_evaluator.ann_file": f"{data}/annotations/val.json",
    }
    for loader in ("train", "val", "test"):
        dataset = f"{loader}_dataloader.dataset"
        settings[f"{dataset}.data_root"] = f"{data}/"
        settings |= {f"{dataset}.shapes.train": train, f"{dataset}.shapes.val": val}
    return settings | {name.replace("__", "."): value for name, value in more.items()}


def small_options(*arguments: object, **settings: object) -> list[str]:
    """The settings of :func:`small_settings` as words of a command line."""
    values = small_settings(*arguments, **settings)
    return ["--cfg-options", *(f"{name}={value}" for name, value in values.items())]


def write_tiny_config(path: Path, data: Path, base: str = PLAIN, **settings: object) -> Path:
    """Write a config that also has few proposals, on pictures of 64 pixels: an epoch takes a second."""
    cfg = Config.fromfile(base)
    cfg.merge_from_dict(small_settings(data, randomness__seed=5, **settings))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.shapes.update(size=64, min_radius=8, max_radius=28)
    cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 16
    cfg.model.test_cfg.rcnn.max_per_img = 4
    cfg.default_hooks.checkpoint.save_best = "coco/bbox_mAP"
    cfg.dump(path)
    return path


def log_of(folder):
    """The text of mmengine's last log in a work directory."""
    return sorted(Path(folder).glob("*/*.log"))[-1].read_text(encoding="utf-8")


def average_precisions(folder):
    """The last box and mask AP in the log of a work directory."""
    return [re.findall(rf"coco/{kind}_mAP: (-?[\d.]+)", log_of(folder))[-1] for kind in ("bbox", "segm")]
