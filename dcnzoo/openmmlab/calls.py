"""The settings of a model of MMDetection that differ during a call of a detector."""

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

# endings of the names of the heads' last layers; not conv_logits, whose values only meet one threshold
PREDICTIONS = ("_cls", "_reg", "_obj", "fc_logits", "_centerness", "_iou", "cls_branches", "reg_branches")
# the score can rise after the threshold (mask IoU, square root), or weaker boxes vote
UNORDERED = (ATSSVLFusionHead, MaskScoringRoIHead, PAAHead)

# several detectors may have one model, and a detector, which can be pickled, cannot have a lock
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@contextlib.contextmanager
def call_settings(model: nn.Module, threshold: float = -1.0, bf16: bool = False) -> Iterator[None]:
    """Context with a model's settings for a call, one call at a time. Its end, also by an error, undoes them.

    A model in training is in evaluation mode. Heads drop boxes below the score threshold before NMS and the
    masks: the detections above it stay the same, because whether NMS drops a box depends only on boxes with a
    higher score. With ``bf16``, for autocast, the heads' last layers compute in float32: in bfloat16, scores
    have three digits, so that the ranks of proposals and boxes change.
    """
    # heads compare with >, the detector with >=, perhaps in bfloat16: it decides about the last percent
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
    """Whether a head is one of MMDetection's that reads its score threshold before NMS, and only there."""
    known = isinstance(module, BaseDenseHead | BaseRoIHead) and type(module).__module__.startswith("mmdet.")
    return known and not isinstance(module, UNORDERED)


def _in_float32(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())
