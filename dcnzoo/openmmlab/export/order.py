"""The order of scores by their logits, while a detector is traced.

Above a logit of about 13, different logits have one float32 sigmoid, and the order of equal scores decides
which boxes remain after NMS. Runtimes order equal scores differently. The order of the logits is that of
exact arithmetic, and the same in each. PyTorch's own predictions have MMDetection's order.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dcnzoo.compat.patches import Changes
from dcnzoo.ops._arguments import exporting

LARGEST = 80.0  # exp(80) is finite in float32
PRODUCT = {"mul", "__mul__", "__rmul__"}
# functions that compare values, and their arguments
COMPARISON = {
    "max": ("dim", "keepdim"),  # also of all values, or of two tensors
    "sort": ("dim", "descending"),
    "topk": ("k", "dim", "largest", "sorted"),
}
SELECTION = {  # functions that return values of a tensor
    *("__getitem__", "contiguous", "expand", "permute", "transpose", "t", "reshape", "view", "flatten"),
    "squeeze",
}
HANDLED = {"sigmoid", "sqrt", "cat", "where", *PRODUCT, *COMPARISON, *SELECTION}


class OrderByLogits(TorchFunctionMode):
    """Compare sigmoids, and products of sigmoids, by their logits. Equal ones keep their order."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name not in HANDLED or not args:
            return function(*args, **kwargs)
        scores = args[0]
        if name in COMPARISON and has_logits(scores):
            options = {**dict(zip(COMPARISON[name], args[1:], strict=False)), **kwargs}
            if name != "max" or type(options.get("dim")) is int:
                return _compare(scores, name, **options)
        result = function(*args, **kwargs)
        if name == "sigmoid":
            result.logits = scores
        elif name == "cat" and any(map(has_logits, scores)):
            result.logits = function([logits_of(part) for part in scores], *args[1:], **kwargs)
        elif function is torch.where and any(map(has_logits, args[1:])):
            result.logits = function(scores, *map(logits_of, args[1:]))
        elif name in SELECTION and has_logits(scores):
            result.logits = function(scores.logits, *args[1:], **kwargs)
        elif name == "sqrt" and has_logits(scores):  # has the order of its argument
            result.logits = scores.logits
        elif name in PRODUCT and has_logits(scores) and has_logits(args[1]):
            kind = torch.promote_types(result.dtype, torch.float32)
            first, second = (torch.exp(-x.logits.to(kind).clamp(-LARGEST, LARGEST)) for x in args)
            result.logits = -torch.log(first + second + first * second)  # a difference would lose digits
        return result


def has_logits(scores: Any) -> bool:
    return hasattr(scores, "logits")


def logits_of(scores: Any) -> Tensor:
    """Return finite values in the exact order of scores: the logits of sigmoids and of their products."""
    return scores.logits if has_logits(scores) else torch.logit(torch.as_tensor(scores).clamp(min=1e-37))


@contextmanager
def order_of_files() -> Iterator[None]:
    """Context in which MMDetection's predictions in PyTorch have the order of exported files."""
    with Changes() as changes, OrderByLogits():
        changes.wrap(sys.modules["mmcv.ops.nms"], "nms", _suppress)
        yield


def _suppress(nms: Callable, boxes: Tensor, scores: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Call ``mmcv.ops.nms``."""
    if not has_logits(scores) or kwargs.get("score_threshold", 0) > 0:
        return nms(boxes, scores, *args, **kwargs)
    _, index = nms(boxes, logits_of(scores), *args, **kwargs)
    return torch.cat([boxes[index], scores[index, None]], 1), index


def _compare(scores: Tensor, name: str, dim: int = -1, **options: Any) -> Any:
    """Call ``max``, ``sort`` or ``topk``."""
    logits = logits_of(scores)
    if name == "max" or (name == "topk" and exporting()):
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
