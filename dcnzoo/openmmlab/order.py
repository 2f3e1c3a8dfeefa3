"""The order of scores by their logits.

Above a logit of about 13, different logits have one float32 sigmoid, and the order of equal scores decides
which boxes remain after NMS. The order of the logits is that of exact arithmetic.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcnzoo.compat.patches import Changes

LARGEST = 80.0  # exp(80) is finite in float32
SIGMOID = (torch.sigmoid, Tensor.sigmoid)
PRODUCT = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
MAX = (torch.max, Tensor.max)  # also of all values, or of two tensors
SQRT = (torch.sqrt, Tensor.sqrt)  # has the order of its argument
# functions that compare values, and their arguments
COMPARISON = {
    torch.max: ("dim", "keepdim"),
    torch.sort: ("dim", "descending"),
    torch.topk: ("k", "dim", "largest", "sorted"),
}
COMPARISON |= {getattr(Tensor, function.__name__): names for function, names in COMPARISON.items()}
SELECTION = {  # functions that return values of a tensor
    *(Tensor.__getitem__, Tensor.contiguous, Tensor.expand, Tensor.permute, Tensor.transpose, Tensor.t),
    *(Tensor.reshape, Tensor.view, Tensor.flatten, torch.flatten, Tensor.squeeze, torch.squeeze),
}
HANDLED = {*SIGMOID, *PRODUCT, *SQRT, *COMPARISON, *SELECTION, torch.cat, torch.where}
SINGLE = "_predict_by_feat_single"


class OrderByLogits(TorchFunctionMode):
    """Compare sigmoids, and products of sigmoids, by their logits. Equal ones keep their order."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in HANDLED or not args:
            return function(*args, **kwargs)
        scores = args[0]
        if has_logits(scores) and function in COMPARISON:
            options = {**dict(zip(COMPARISON[function], args[1:], strict=False)), **kwargs}
            if function not in MAX or type(options.get("dim")) is int:
                return _compare(scores, function.__name__, **options)
        result = function(*args, **kwargs)
        if function in SIGMOID:
            result.logits = scores
        elif function is torch.cat and any(map(has_logits, scores)):
            result.logits = function([logits_of(part) for part in scores], *args[1:], **kwargs)
        elif function is torch.where and any(map(has_logits, args[1:])):
            result.logits = function(scores, *map(logits_of, args[1:]))
        elif has_logits(scores) and function in SELECTION:
            result.logits = function(scores.logits, *args[1:], **kwargs)
        elif has_logits(scores) and function in SQRT:
            result.logits = scores.logits
        elif has_logits(scores) and function in PRODUCT and has_logits(args[1]):
            kind = torch.promote_types(result.dtype, torch.float32)
            first, second = (torch.exp(-x.logits.to(kind).clamp(-LARGEST, LARGEST)) for x in args)
            result.logits = -torch.log(first + second + first * second)  # a difference would lose digits
        return result


def has_logits(scores: Any) -> bool:
    return hasattr(scores, "logits")


def logits_of(scores: Any) -> Tensor:
    """Return finite values in the exact order of scores: the logits of sigmoids and of their products."""
    return scores.logits if has_logits(scores) else torch.logit(torch.as_tensor(scores).clamp(min=1e-37))


def order_by_logits(changes: Changes) -> None:
    """Let heads of MMDetection order boxes by logits when they predict."""
    from mmdet.models import DDQDETR, SparseRoIHead, YOLOV3Head, YOLOXHead, dense_heads
    from mmdet.models.layers.transformer.ddq_detr_layers import DDQTransformerDecoder

    changes.wrap(sys.modules["mmcv.ops.nms"], "nms", _suppress)
    changes.wrap(dense_heads.RPNHead, SINGLE, _propose)
    kinds = [kind for kind in vars(dense_heads).values() if SINGLE in getattr(kind, "__dict__", ())]
    methods = [(kind, SINGLE) for kind in (dense_heads.base_dense_head.BaseDenseHead, *kinds)]
    methods += [(YOLOV3Head, "predict_by_feat"), (YOLOXHead, "predict_by_feat")]
    methods += [(SparseRoIHead, "predict_bbox"), (DDQDETR, "pre_decoder")]
    methods += [(DDQTransformerDecoder, "select_distinct_queries")]
    for kind, name in methods:
        if kind is not dense_heads.RPNHead:
            changes.wrap(kind, name, _predict)


def _predict(method: Callable, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with nullcontext() if self.training or torch.compiler.is_exporting() else OrderByLogits():
        return method(self, *args, **kwargs)


class _Logits(Tensor):
    def sigmoid(self) -> Tensor:
        return self.as_subclass(Tensor)


def _propose(
    single: Callable, self: Any, cls_score_list: list, *args: Any, cfg: Any = None, **kwargs: Any
) -> Any:
    """Call ``RPNHead._predict_by_feat_single`` with logits as scores, which takes less time than the mode."""
    settings = (self.test_cfg if cfg is None else cfg).get("nms", {})
    if self.training or not self.use_sigmoid_cls or set(settings) - {"type", "iou_threshold"}:
        return single(self, cls_score_list, *args, cfg=cfg, **kwargs)
    results = single(
        self, [scores.as_subclass(_Logits) for scores in cls_score_list], *args, cfg=cfg, **kwargs
    )
    results.scores = results.scores.sigmoid()
    return results


def _suppress(nms: Callable, boxes: Tensor, scores: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Call ``mmcv.ops.nms``."""
    if not has_logits(scores) or kwargs.get("score_threshold", 0) > 0:
        return nms(boxes, scores, *args, **kwargs)
    _, index = nms(boxes, logits_of(scores), *args, **kwargs)
    return torch.cat([boxes[index], scores[index, None]], 1), index


def _compare(scores: Tensor, name: str, dim: int = -1, **options: Any) -> Any:
    """Call ``max``, ``sort`` or ``topk``."""
    logits = logits_of(scores)
    if name == "max" or (name == "topk" and torch.compiler.is_exporting()):
        index = getattr(logits, name)(dim=dim, **options).indices
    else:  # topk may return equal values in any order
        descending = options.get("descending", options.get("largest", name == "topk"))
        index = logits.sort(dim=dim, descending=descending, stable=True).indices
        index = index.narrow(dim, 0, options.get("k", index.shape[dim]))

    def take(values: Tensor) -> Tensor:
        if index.dim() == values.dim():
            return values.gather(dim, index)
        return values.gather(dim, index.unsqueeze(dim)).squeeze(dim)

    values: Any = take(scores)
    values.logits = take(logits)
    return getattr(torch.return_types, name)((values, index))
