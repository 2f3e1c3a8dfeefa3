"""Views of MMDetection's detectors: fused layers, and a score threshold before NMS."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.swish import Swish
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.dense_heads import ATSSVLFusionHead, PAAHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import MaskScoringRoIHead
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmengine.config import ConfigDict
from torch import Tensor, nn

from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.layers.fuse import Copies, Layer, Layers
from dcnzoo.openmmlab.models.dcn import DCN, DCNv2


def conv_module(module: ConvModule, layers: Layers) -> Layer | None:
    """``conv``, ``norm`` and ``activate``, in this order."""
    if module.order != ("conv", "norm", "act") or module.with_explicit_padding:
        return None
    activation = module.activate if module.with_activation else None

    def forward(x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        return layers(module.conv, module.norm if norm else None, activation if activate else None)(x)

    return forward


def residual(block: Any, layers: Layers) -> Layer | None:
    """The BasicBlock and the Bottleneck of ResNets: ``conv1``, ``norm1``, …, ``downsample`` and ``relu``."""
    if getattr(block, "with_plugins", False):
        return None
    names = ("conv1", "conv2", "conv3") if hasattr(block, "conv3") else ("conv1", "conv2")
    convs = [layers(getattr(block, name), getattr(block, f"norm{name[-1]}"), block.relu) for name in names]
    downsample = None if block.downsample is None else layers.copies[block.downsample]

    def forward(x: Tensor) -> Tensor:
        identity = x if downsample is None else downsample(x)
        for conv in convs[:-1]:
            x = conv(x)
        return convs[-1](x, identity)

    return forward


def stem(network: Any, layers: Layers) -> None:
    """``conv1``, ``norm1`` and ``relu`` of a ResNet, which has no other use for them."""
    if "conv1" not in network._modules:
        return
    parts = (network.conv1, network.norm1, network.relu)
    if fused := layers.fused(*parts):
        for part, forward in zip(parts, (fused, nn.Identity(), nn.Identity()), strict=True):
            layers.copies[part].__dict__["forward"] = forward


BLOCKS: dict[type, Callable] = {
    ConvModule: conv_module,
    Bottleneck: residual,
    BasicBlock: residual,
    ResNet: stem,
}
SAME: dict[type, type] = {
    wrappers.Conv2d: nn.Conv2d,
    wrappers.Linear: nn.Linear,
    Swish: nn.SiLU,
    DCN: PackedDeformConv2d,
    DCNv2: PackedDeformConv2d,
}
# endings of the names of the heads' last layers; not conv_logits, whose values only meet one threshold
PREDICTIONS = ("_cls", "_reg", "_obj", "fc_logits", "_centerness", "_iou", "cls_branches", "reg_branches")
# the score can rise after the threshold (mask IoU, square root), or weaker boxes vote
UNORDERED = (ATSSVLFusionHead, MaskScoringRoIHead, PAAHead)


def predict_in_float32(copies: Copies) -> None:
    """Keep the heads' last layers in float32 while autocast is on.

    In bfloat16, scores have three digits, so that the ranks of proposals and boxes change.
    """
    model = next(iter(copies))
    for name, module in model.named_modules():
        if name.endswith(PREDICTIONS):
            for layer in module if isinstance(module, nn.ModuleList) else [module]:
                copy = copies[layer]
                copy.__dict__["forward"] = partial(_in_float32, copy.forward)


def _in_float32(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def raise_threshold(copies: Copies, threshold: float) -> None:
    """Let the heads of a view drop boxes below the score threshold before NMS and the masks.

    The detections above it stay the same: whether NMS drops a box depends only on boxes with a higher score.
    """
    # heads compare with >, the detector with >=, perhaps in bfloat16: it decides about the last percent
    score_thr = 0.99 * threshold
    proposals = {getattr(module, "rpn_head", None) for module in copies}
    for module, copy in copies.items():
        settings = getattr(module, "test_cfg", None)
        ours = isinstance(module, BaseDenseHead | BaseRoIHead) and type(module).__module__.startswith(
            "mmdet."
        )
        if not ours or isinstance(module, UNORDERED) or module in proposals or not settings:
            continue
        if settings.get("score_thr") is not None and settings.score_thr < score_thr:
            copy.__dict__["test_cfg"] = ConfigDict(settings, score_thr=score_thr)
