"""Views of MMDetection's detectors: fused layers, and a score threshold before NMS."""

import contextlib
from collections.abc import Callable, Iterator
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
from dcnzoo.layers.forwards import Forwards
from dcnzoo.layers.fuse import Block, Fuser
from dcnzoo.openmmlab.models.dcn import DCN, DCNv2

Copies = dict[nn.Module, nn.Module]  # module of the model -> its copy in the view


def view(model: nn.Module) -> Copies:
    """Copy a model's modules for inference; parameters, buffers and hooks are shared with the model.

    Each call has its own copies, because MMDetection's heads read the score threshold from ``test_cfg``,
    which calls in other threads must not see. The caller can change them. They have the modes of their
    modules, but are all in evaluation if the model is in training.
    """
    copies: Copies = {}
    for module in model.modules():
        copies[module] = module
        if not isinstance(module, torch.jit.ScriptModule):
            copies[module] = copy = object.__new__(type(module))
            copy.__dict__.update(module.__dict__, training=module.training and not model.training)
    for module, copy in copies.items():
        if copy is not module:
            children = module._modules.items()
            copy.__dict__["_modules"] = {name: child and copies[child] for name, child in children}
    return copies


@contextlib.contextmanager
def stores(copies: Copies) -> Iterator[None]:
    """A context for calls of the copies: what changes in a copy is stored in its module, too."""
    before = {copy: dict(vars(copy)) for copy in copies.values()}
    modules = {id(copy): module for module, copy in copies.items()}
    try:
        yield
    finally:
        for module, copy in copies.items():
            changed = ((n, v) for n, v in vars(copy).items() if v is not before[copy].get(n))
            vars(module).update((n, modules.get(id(v), v)) for n, v in changed)
            module._modules.update((n, modules.get(id(v), v)) for n, v in copy._modules.items())


def conv_module(module: ConvModule, fuser: Fuser) -> Forwards:
    """``conv``, ``norm`` and ``activate``, in this order."""
    if module.order != ("conv", "norm", "act") or module.with_explicit_padding:
        return {}
    activation = module.activate if module.with_activation else None

    def forward(x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        return fuser(module.conv, module.norm if norm else None, activation if activate else None)(x)

    return {module: forward}


def residual(block: Any, fuser: Fuser) -> Forwards:
    """The BasicBlock and the Bottleneck of ResNets: ``conv1``, ``norm1``, …, ``downsample`` and ``relu``."""
    if getattr(block, "with_plugins", False):
        return {}
    names = ("conv1", "conv2", "conv3") if hasattr(block, "conv3") else ("conv1", "conv2")
    convs = [fuser(getattr(block, name), getattr(block, f"norm{name[-1]}"), block.relu) for name in names]

    def forward(x: Tensor) -> Tensor:
        identity = x if block.downsample is None else block.downsample(x)
        for conv in convs[:-1]:
            x = conv(x)
        return convs[-1](x, identity)

    return {block: forward}


def stem(network: Any, fuser: Fuser) -> Forwards:
    """``conv1``, ``norm1`` and ``relu`` of a ResNet, which has no other use for them."""
    if "conv1" not in network._modules:
        return {}
    fused, same = fuser.fused_layer(network.conv1, network.norm1, network.relu), nn.Identity()
    return {network.conv1: fused, network.norm1: same, network.relu: same} if fused else {}


BLOCKS: dict[type, Block] = {
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


def predict_in_float32(view: nn.Module, forwards: dict[nn.Module, Callable[..., Tensor]]) -> None:
    """Keep the heads' last layers in float32 while autocast is on, whether they are fused or not.

    In bfloat16, scores have three digits, so that the ranks of proposals and boxes change.
    """
    for name, module in view.named_modules():
        if name.endswith(PREDICTIONS):
            for layer in module if isinstance(module, nn.ModuleList) else [module]:
                layer.__dict__["forward"] = partial(_in_float32, forwards.pop(layer, layer.forward))


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
