"""Heads that predict boxes, with results of a fixed size.

All end in :func:`dcnzoo.openmmlab.export.nms.suppress`. A head with another selection by scores gets a mixin
here and a rule in :mod:`dcnzoo.openmmlab.export.rules`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import dense_heads
from mmdet.models.dense_heads import tood_head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.export.fixed_size import ABSENT, scaled
from dcnzoo.openmmlab.export.nms import suppress
from dcnzoo.ops import deform_conv2d

MOST = 1000  # boxes of YOLOX: MMDetection's head does not read max_per_img; a graph needs a limit


def as_instances(dets: Tensor, labels: Tensor, **others: Tensor) -> InstanceData:
    """Return the results of :func:`suppress` as MMDetection does."""
    return InstanceData(bboxes=dets[:, :4], scores=dets[:, 4], labels=labels, **others)


class DenseHead(BaseDenseHead):
    def _bbox_post_process(
        self,
        results: InstanceData,
        cfg: ConfigDict,
        rescale: bool = False,
        with_nms: bool = True,
        *_: Any,
        **__: Any,
    ) -> InstanceData:
        """Select boxes, also of RPNHead, whose boxes compete within their level."""
        if not with_nms:
            return results
        scores, boxes = results.scores, get_box_tensor(results.bboxes)
        if "score_factors" in results:
            scores = scaled(scores, results.score_factors)
        is_rpn = "level_ids" in results
        groups = results.level_ids if is_rpn else results.labels
        dets, labels, index = suppress(cfg, type(self).__name__, boxes, scores, groups)
        own = ("bboxes", "scores", "labels", "score_factors", "level_ids")
        others = {name: value[index] for name, value in results.items() if name not in own}
        return as_instances(dets, torch.zeros_like(labels) if is_rpn else labels, **others)


class RPNHead(DenseHead, dense_heads.RPNHead):
    def _predict_by_feat_single(
        self, *, img_meta: dict, cfg: ConfigDict, rescale: bool, with_nms: bool, **parts: list
    ) -> InstanceData:
        """Predict level by level: MMDetection compares ``nms_pre`` with the size of a level."""
        cfg = ConfigDict(self.test_cfg if cfg is None else cfg, score_thr=0)
        levels = []
        for i, values in enumerate(zip(*parts.values(), strict=True)):
            level = {name: [value] for name, value in zip(parts, values, strict=True)}
            results = BaseDenseHead._predict_by_feat_single(
                self, img_meta=img_meta, cfg=cfg, with_nms=False, **level
            )
            results.level_ids = torch.full_like(results.labels, i)
            levels.append(results)
        return self._bbox_post_process(InstanceData.cat(levels), cfg)


class TOODHead(DenseHead, tood_head.TOODHead):
    def deform_sampling(self, feat: Tensor, offset: Tensor) -> Tensor:
        """Sample with a weight of ones of its own: MMDetection's differs by image in ``torch.vmap``."""
        channels = feat.shape[1]
        ones = torch.ones(channels, 1, 1, 1, dtype=feat.dtype, device=feat.device)
        return deform_conv2d(feat, ones, offset, groups=channels)


class YOLOV3Head(DenseHead, dense_heads.YOLOV3Head):
    def predict_by_feat(
        self, pred_maps: Sequence[Tensor], *args: Any, cfg: Any = None, **kwargs: Any
    ) -> list[InstanceData]:
        """Set scores to zero where MMDetection drops boxes by ``conf_thr``."""
        cfg = ConfigDict(self.test_cfg if cfg is None else cfg)
        least = cfg.pop("conf_thr", -1)
        maps = []
        for level in pred_maps:
            values = level.unflatten(1, (-1, self.num_attrib))
            certain = values[:, :, 4:5].sigmoid() >= least
            logits = torch.where(certain, values[:, :, 5:], -torch.inf)
            maps.append(torch.cat([values[:, :, :5], logits], 2).flatten(1, 2))
        return super().predict_by_feat(maps, *args, cfg=cfg, **kwargs)


class YOLOXHead(dense_heads.YOLOXHead):
    def predict_by_feat(
        self, *outputs: list[Tensor], cfg: ConfigDict | None = None, **_: Any
    ) -> list[InstanceData]:
        """Keep the best class of each location. As MMDetection's, it reads only score_thr and nms."""
        cfg = self.test_cfg if cfg is None else cfg
        cfg = ConfigDict(score_thr=cfg.score_thr, nms=cfg.nms, max_per_img=MOST)
        sizes, device = [level.shape[2:] for level in outputs[0]], outputs[0][0].device
        priors = self.prior_generator.grid_priors(sizes, device=device, with_stride=True)
        scores, deltas, objectness = (
            torch.cat([level[0].flatten(1) for level in levels], 1).t() for levels in outputs
        )
        scores, labels = scores.sigmoid().max(1)
        scores = scores * objectness[:, 0].sigmoid()
        scores = torch.where(scores >= cfg.score_thr, scores, ABSENT)
        boxes = self._bbox_decode(torch.cat(priors), deltas)
        results = suppress(cfg, type(self).__name__, boxes, scores, labels)
        return [as_instances(*results[:2])]


class CornerHead(dense_heads.CornerHead):
    def _predict_by_feat_single(
        self,
        tl_heat: Tensor,
        br_heat: Tensor,
        tl_off: Tensor,
        br_off: Tensor,
        img_meta: dict,
        rescale: bool = False,
        with_nms: bool = True,
        **embeddings: Tensor,
    ) -> InstanceData:
        """Pair corners. MMDetection gives pairs that are no box the score -1, which is ``ABSENT``."""
        cfg = self.test_cfg
        boxes, scores, labels = self._decode_heatmap(
            tl_heat.sigmoid(),
            br_heat.sigmoid(),
            tl_off,
            br_off,
            img_meta=img_meta,
            k=cfg.corner_topk,
            kernel=cfg.local_maximum_kernel,
            distance_threshold=cfg.distance_threshold,
            **embeddings,
        )
        pairs = boxes[0], scores[0, :, 0], labels[0, :, 0]
        results = suppress(cfg, type(self).__name__, *pairs)
        return as_instances(*results[:2])
