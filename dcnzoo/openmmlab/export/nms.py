"""Selection and suppression of boxes by a config's settings, with results of a fixed size.

The heads of :mod:`dcnzoo.openmmlab.export.mixins.boxes` and the functions of
:mod:`dcnzoo.openmmlab.export.functions` end here. What computes is in :mod:`dcnzoo.export.fixed_size`.
"""

import torch
from mmengine.config import ConfigDict
from torch import Tensor

from dcnzoo.export.fixed_size import ABSENT, dynamic_topk, keep_boxes, soft_keep_boxes

# mmcv's arguments of NMS that are used, with its defaults
NMS = dict(iou_threshold=None, class_agnostic=False, max_num=-1, split_thr=None)
SOFT_NMS = {**NMS, **dict(iou_threshold=0.3, sigma=0.5, min_score=1e-3, method="linear")}


def suppress(
    cfg: ConfigDict,  # the head's test_cfg
    owner: str,
    boxes: Tensor,  # [K, 4]
    scores: Tensor,  # [K], ABSENT for unused boxes
    labels: Tensor,  # [K]
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the NMS of the config to one image.

    Returns:
        Boxes with scores [max_per_img, 5], best first, their labels, and their indices.

    Raises:
        ValueError: a setting of this NMS cannot be exported.
    """
    kind, nms = _settings(dict(cfg.nms), owner)
    scores = without_small(cfg, boxes, scores)
    if cfg.max_per_img < 1:  # MMDetection leaves out the last boxes, or all
        raise ValueError(f"{owner}: max_per_img: expected at least 1 in a file, got {cfg.max_per_img}")
    agnostic, most = nms.pop("class_agnostic"), nms.pop("max_num")
    classes = torch.zeros_like(labels) if agnostic else labels
    batch = boxes[None], scores[None], classes[None]
    count = cfg.max_per_img if most <= 0 else min(cfg.max_per_img, most)
    if kind == "soft_nms":
        results = soft_keep_boxes(*batch, max_boxes=count, **nms)
    else:
        results = keep_boxes(*batch, nms["iou_threshold"], count)
    dets, index = (part[0] for part in results)
    return dets, labels[index], index


def without_small(cfg: ConfigDict, boxes: Tensor, scores: Tensor) -> Tensor:
    """Return the scores, with ``ABSENT`` for boxes below ``min_bbox_size``. A negative size excludes none."""
    if (least := cfg.get("min_bbox_size", -1)) < 0:
        return scores
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
    return torch.where((width > least) & (height > least), scores, ABSENT)


def _settings(nms: dict, owner: str) -> tuple[str, dict]:
    """Return the kind of an NMS, and mmcv's arguments with defaults; raise the errors of :func:`suppress`."""
    kind = nms.pop("type", "nms")
    if kind not in ("nms", "soft_nms"):
        raise ValueError(f"{owner}: nms: expected type='nms' or 'soft_nms', got {kind!r}")
    if "iou_thr" in nms:  # its earlier name
        nms["iou_threshold"] = nms.pop("iou_thr")
    if (offset := nms.pop("offset", 0)) != 0:
        raise ValueError(f"{owner}: nms: offset: expected 0 in an exported file, got {offset}")
    known = NMS if kind == "nms" else SOFT_NMS
    if unknown := sorted(nms.keys() - known.keys()):
        raise ValueError(f"{owner}: nms: expected {', '.join(known)} with {kind}, got {unknown[0]}")
    nms = {**known, **nms}
    del nms["split_thr"]  # mmcv's limit for one call; the result is the same
    if nms["max_num"] > 0 and kind == "soft_nms":
        raise ValueError(f"{owner}: nms: max_num: expected none with soft_nms, got {nms['max_num']}")
    return kind, nms


def topk_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:  # [K, classes] -> [k] each
    """Select the ``count`` best pairs of prior and class, all if ``count`` ≤ 0: scores, priors, classes."""
    classes, scores = scores.shape[-1], scores.flatten()
    if count > 0:
        scores, pair = (part[0] for part in dynamic_topk(scores[None], count))
    else:
        pair = torch.arange(len(scores), device=scores.device)
    return scores, pair // classes, pair % classes


def of_class(values: Tensor, labels: Tensor) -> Tensor:  # [N·K, classes, …], [N, K] -> [N·K, 1, …]
    """Select the values of each box's label, or the only ones if the head is class-agnostic."""
    if values.shape[1] == 1:
        return values
    index = labels.flatten().clamp(min=0).view(-1, 1, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, 1, *values.shape[2:]))
