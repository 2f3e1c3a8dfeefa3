"""Views of MMDetection's detectors: folded norms, and a score threshold before NMS."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSVLFusionHead, PAAHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import MaskScoringRoIHead
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dcnzoo.layers import DeformConv2d

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
            copies[module] = new = object.__new__(type(module))
            new.__dict__.update(module.__dict__, training=module.training and not model.training)
    for module, new in copies.items():
        if new is not module:
            children = module._modules.items()
            new.__dict__["_modules"] = {name: child and copies[child] for name, child in children}
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


def fold_norms(model: nn.Module) -> nn.Module:
    """Return a copy for inference whose convolutions contain the batch norms behind them.

    Results differ by rounding. The norm behind a deformable convolution is folded, too.
    """
    model = copy.deepcopy(model)
    model.eval()  # which some detectors return as None
    for module in model.modules():
        last: Any = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and last is not None and child.running_mean is not None:
                norm = (child.running_mean, child.running_var, child.eps, child.weight, child.bias)
                last.weight, last.bias = fuse_conv_bn_weights(last.weight, last.bias, *norm)
                module._modules[name], last = nn.Identity(), None
            elif isinstance(child, nn.Conv2d | DeformConv2d):
                last = child
    return model


# endings of the names of the heads' last layers; not conv_logits, whose values only meet one threshold
PREDICTIONS = ("_cls", "_reg", "_obj", "fc_logits", "_centerness", "_iou", "cls_branches", "reg_branches")
# the score can rise after the threshold (mask IoU, square root), or weaker boxes vote
UNORDERED = (ATSSVLFusionHead, MaskScoringRoIHead, PAAHead)


def predict_in_float32(view: nn.Module) -> None:
    """Keep the heads' last layers in float32 while autocast is on.

    In bfloat16, scores have three digits, so that the ranks of proposals and boxes change.
    """
    for name, module in view.named_modules():
        if name.endswith(PREDICTIONS):
            for layer in module if isinstance(module, nn.ModuleList) else [module]:
                layer.__dict__["forward"] = partial(_in_float32, layer.forward)


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
    for module, new in copies.items():
        settings = getattr(module, "test_cfg", None)
        ours = isinstance(module, BaseDenseHead | BaseRoIHead) and type(module).__module__.startswith(
            "mmdet."
        )
        if not ours or isinstance(module, UNORDERED) or module in proposals or not settings:
            continue
        if settings.get("score_thr") is not None and settings.score_thr < score_thr:
            new.__dict__["test_cfg"] = ConfigDict(settings, score_thr=score_thr)
