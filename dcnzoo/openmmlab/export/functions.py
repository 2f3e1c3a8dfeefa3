"""Functions of MMDetection and mmcv that are replaced in the process, while a detector is traced.

A function of a module has no class, so that no mixin of :mod:`dcnzoo.openmmlab.export.rules` reaches it. The
two tables at the end are the whole list: a replacement has the name of its original. :func:`replaced` applies
them. Calls of detectors wait meanwhile: :mod:`dcnzoo.openmmlab.calls`.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from mmcv import ops as mmcv_ops
from mmcv.ops.carafe import CARAFEFunction
from mmcv.ops.deform_conv import DeformConv2dFunction
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
from mmdet.models.dense_heads import tood_head
from mmdet.models.layers import multiclass_nms
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet.models.utils import filter_scores_and_topk
from mmdet.models.utils.gaussian_target import get_topk_from_heatmap
from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils._pytree import tree_map

from dcnzoo.compat.mmcv import deform_conv
from dcnzoo.compat.patches import Changes
from dcnzoo.export.fixed_size import ABSENT, dynamic_topk
from dcnzoo.openmmlab.export.nms import suppress, topk_pairs
from dcnzoo.openmmlab.export.symbolic_sizes import tensor_of

# which rows of the RPN's results are proposals, [M], while an RoI head predicts: MMDetection has no others
proposals: ContextVar[Tensor | None] = ContextVar("proposals", default=None)


def without_context(forward: Callable) -> Any:
    """Return the ``forward`` of an autograd function, which receives a context, for a function of tensors."""
    return staticmethod(lambda context, *arguments: forward(*arguments))


def traced_filter_scores_and_topk(scores: Tensor, score_thr: float, topk: int, results: Any = None) -> tuple:
    """Replace ``filter_scores_and_topk``. Scores below the threshold become ``ABSENT``."""
    scores, index, labels = topk_pairs(torch.where(scores > score_thr, scores, ABSENT), topk)
    if results is not None:
        results = tree_map(lambda value: value[index], results)
    return scores, labels, index, results


def traced_batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Replace ``batched_nms``. Return as many results as boxes: boxes that NMS drops come last."""
    if nms_cfg is None:
        scores, index = scores.topk(len(scores))
        return torch.cat([boxes[index], scores[:, None]], 1), index
    nms = dict(nms_cfg, class_agnostic=class_agnostic or nms_cfg.get("class_agnostic", False))
    cfg = ConfigDict(nms=nms, max_per_img=len(boxes))
    dets, _, index = suppress(cfg, "batched_nms", boxes, scores, idxs.long())
    return dets, index


def traced_multiclass_nms(
    multi_bboxes: Tensor,  # [M, 4] or [M, classes·4]
    multi_scores: Tensor,  # [M, classes + 1]
    score_thr: float,
    nms_cfg: dict,
    max_num: int = -1,
    score_factors: Tensor | None = None,
    return_inds: bool = False,
    box_dim: int = 4,
) -> tuple[Tensor, ...]:
    """Replace ``multiclass_nms``. Boxes of an RoI head that are no proposals have no score."""
    count, classes = multi_scores.shape[0], multi_scores.shape[1] - 1
    boxes = multi_bboxes.reshape(count, -1, 4).expand(-1, classes, -1).reshape(-1, 4)
    scores = multi_scores[:, :-1]
    present = scores > score_thr
    if (is_proposal := proposals.get()) is not None:
        present = present & is_proposal[:, None]
    if score_factors is not None:
        scores = scores * score_factors[:, None]
    scores = torch.where(present, scores, ABSENT).flatten()
    labels = torch.arange(classes, device=scores.device).repeat(count)
    cfg = ConfigDict(nms=nms_cfg, max_per_img=max_num if max_num > 0 else len(boxes))
    dets, labels, index = suppress(cfg, "multiclass_nms", boxes, scores, labels)
    return (dets, labels, index) if return_inds else (dets, labels)


def traced_get_topk_from_heatmap(scores: Tensor, k: int = 20) -> tuple[Tensor, ...]:
    """Replace ``get_topk_from_heatmap``: the exporter cannot divide an integer by a symbolic size."""
    height, width = tensor_of(scores.shape[-2:], dtype=torch.long)
    values, index = dynamic_topk(scores.flatten(1), k)
    label, index = index // (height * width), index % (height * width)
    return values, index, label, index // width, (index % width).float()


def traced_inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Replace ``inverse_sigmoid``, which clamps three times: the file of two calls for one tensor is invalid.

    The exporter's optimiser joins the clamps of one call, and drops a value that the other reads.
    """
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def traced_sigmoid_geometric_mean(x: Tensor, y: Tensor) -> Tensor:
    """Replace ``sigmoid_geometric_mean``, an autograd function, which ``torch.vmap`` does not accept."""
    return (x.sigmoid() * y.sigmoid()).sqrt()


def traced_keys(element: BaseDataElement, keys: Callable = BaseDataElement.keys) -> list[str]:
    """Replace ``keys``, a set: the order of a file's nodes would depend on PYTHONHASHSEED."""
    return sorted(keys(element))


# replaced in every module that imports them
FUNCTIONS: dict[Callable, Callable] = {
    filter_scores_and_topk: traced_filter_scores_and_topk,
    mmcv_ops.batched_nms: traced_batched_nms,
    multiclass_nms: traced_multiclass_nms,
    get_topk_from_heatmap: traced_get_topk_from_heatmap,
    inverse_sigmoid: traced_inverse_sigmoid,
}
# replaced as attributes: (class or module, name, replacement). The first three are autograd functions, which
# make sizes constants
ATTRIBUTES = (
    (DeformConv2dFunction, "forward", without_context(deform_conv.deform_conv2d)),
    (ModulatedDeformConv2dFunction, "forward", without_context(deform_conv.modulated_deform_conv2d)),
    (sys.modules["mmcv.ops.carafe"], "carafe", partial(CARAFEFunction.forward, SimpleNamespace())),
    (tood_head, "sigmoid_geometric_mean", traced_sigmoid_geometric_mean),
    (BaseDataElement, "keys", traced_keys),
)


@contextmanager
def replaced() -> Iterator[None]:
    """Context in which the functions of both tables are replaced."""
    with Changes() as changes:
        for function, replacement in FUNCTIONS.items():
            replace_everywhere(changes, function, replacement)
        for owner, name, replacement in ATTRIBUTES:
            changes.set(owner, name, replacement)
        yield


def replace_everywhere(changes: Changes, original: Callable, replacement: Callable) -> None:
    """Replace a function in all modules that import it, also where a patch wraps it."""
    function = inspect.unwrap(original)
    for module in list(sys.modules.values()):
        value = getattr(module, "__dict__", {}).get(original.__name__)
        if callable(value) and inspect.unwrap(value) is function:
            changes.set(module, original.__name__, replacement)
