"""Change settings of an MMDetection model while its detector is called, and restore them afterwards."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmdet.models.dense_heads import ATSSVLFusionHead, PAAHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import MaskScoringRoIHead
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmengine.config import ConfigDict
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes

# name endings of the heads' last layers; without conv_logits (masks), whose values are only thresholded
PREDICTIONS = ("_cls", "_reg", "_obj", "fc_logits", "_centerness", "_iou", "cls_branches", "reg_branches")
# in these heads, the score can rise after the threshold (mask IoU, square root), or weaker boxes vote
UNORDERED = (ATSSVLFusionHead, MaskScoringRoIHead, PAAHead)

# one lock per model, which detectors may share; kept here because a detector with a lock cannot be pickled
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@contextlib.contextmanager
def call_settings(model: nn.Module, threshold: float = -1.0, bf16: bool = False) -> Iterator[None]:
    """Context that changes a model's settings for a call and restores them afterwards. Calls take turns.

    A model in training mode is put into evaluation mode. Heads drop boxes below the score threshold before
    NMS and mask prediction. Detections above it stay the same, because whether NMS drops a box depends only
    on boxes with a higher score. With ``bf16`` (autocast), the heads' last layers compute in float32:
    bfloat16 scores have only three digits, which would change the order of proposals and boxes.
    """
    # 1 % lower: heads test score > threshold, the detector score >= threshold, and scores may be bfloat16
    least = 0.99 * threshold
    with _locks.setdefault(model, threading.RLock()), Changes() as changes:
        in_training = model.training
        for name, module in model.named_modules():
            if in_training:
                changes.set(module, "training", False)
            if not name.endswith("rpn_head") and _only_compares_scores(module):
                settings = module.test_cfg or {}
                if settings.get("score_thr", least) < least:
                    changes.set(module, "test_cfg", ConfigDict(settings, score_thr=least))
            if bf16 and name.endswith(PREDICTIONS):
                for layer in module if isinstance(module, nn.ModuleList) else [module]:
                    changes.set(layer, "forward", partial(_in_float32, layer.forward))
        yield


def _only_compares_scores(module: Any) -> bool:
    """Return whether a module is a head of MMDetection that uses its score threshold only before NMS."""
    known = isinstance(module, BaseDenseHead | BaseRoIHead) and type(module).__module__.startswith("mmdet.")
    return known and not isinstance(module, UNORDERED)


def _in_float32(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())
