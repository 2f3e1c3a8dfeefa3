"""The demo's configs, and the models of configs."""

import torch

import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from .processes import ROOT

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
