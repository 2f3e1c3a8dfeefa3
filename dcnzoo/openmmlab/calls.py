"""Change settings of an MMDetection model while its detector is called, and restore them afterwards.

Calls of different detectors run at the same time. While an export traces a detector, none runs: the tracing
replaces functions of MMDetection, and torch has one flag for the process.
"""

import contextlib
import threading
from collections import Counter
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
from dcnzoo.utils.errors import note

# name endings of the heads' last layers; without conv_logits (masks), whose values are only thresholded
PREDICTIONS = ("_cls", "_reg", "_obj", "fc_logits", "_centerness", "_iou", "cls_branches", "reg_branches")
# in these heads, the score can rise after the threshold (mask IoU, square root), or weaker boxes vote
UNORDERED = (ATSSVLFusionHead, MaskScoringRoIHead, PAAHead)

# one lock per model, which detectors may share; kept here because a detector with a lock cannot be pickled
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


_turns = threading.Condition()
_callers: Counter[int] = Counter()  # thread → number of calls that run
_tracers: list[int] = []  # the thread that traces, and those that wait for it
PATIENCE = 2  # seconds that a call waits for an export before it prints a line


@contextlib.contextmanager
def call_settings(model: nn.Module, threshold: float = -1.0, bf16: bool = False) -> Iterator[None]:
    """Context of a call, which changes a model's settings and restores them. Calls of one model take turns.

    A model in training mode is put into evaluation mode. Heads drop boxes below the score threshold before
    NMS and mask prediction. Detections above it stay the same, because whether NMS drops a box depends only
    on boxes with a higher score. With ``bf16`` (autocast), the heads' last layers compute in float32:
    bfloat16 scores have only three digits, which would change the order of proposals and boxes.
    """
    thread = threading.get_ident()

    def is_free() -> bool:
        return not _tracers or _callers[thread] > 0

    with _turns:
        if not _turns.wait_for(is_free, PATIENCE):
            note("detector: the call waits until an export in this process has been traced")
            _turns.wait_for(is_free)
        _callers[thread] += 1
    try:
        with _settings(model, threshold, bf16):
            yield
    finally:
        with _turns:
            _callers[thread] -= 1
            _turns.notify_all()


@contextlib.contextmanager
def tracing(model: nn.Module) -> Iterator[None]:
    """Context of the tracing of a model in evaluation mode: it waits until no call runs, and calls wait."""
    thread = threading.get_ident()
    _tracers.append(thread)
    try:
        with _turns:
            _turns.wait_for(lambda: _tracers[0] == thread and not any(_callers.values()))
        with _settings(model):
            yield
    finally:
        with _turns:
            _tracers.remove(thread)
            _turns.notify_all()


@contextlib.contextmanager
def _settings(model: nn.Module, threshold: float = -1.0, bf16: bool = False) -> Iterator[None]:
    """Context with the settings of :func:`call_settings`, and the lock of the model."""
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
