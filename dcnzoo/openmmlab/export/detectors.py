"""Wrap MMDetection's detectors for export: from images to boxes, labels and masks.

``deployable(detector)`` returns a module that computes the same as ``detector.predict`` with
``rescale=False``, for a whole batch and with outputs of a fixed size, so that it exports to one graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import CornerPool, MultiScaleDeformableAttention, point_sample
from mmcv.ops.point_sample import generate_grid
from mmdet.models.dense_heads import CornerHead, RPNHead, YOLOV3Head, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import (
    DABDETR,
    DDQDETR,
    DETR,
    DINO,
    ConditionalDETR,
    DeformableDETR,
    SingleStageDetector,
    TwoStageDetector,
    TwoStagePanopticSegmentor,
)
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet.models.roi_heads import CascadeRoIHead, PointRendRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor, SingleRoIExtractor
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from mmdet.models.utils.gaussian_target import get_topk_from_heatmap
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.export import Dim

from dcnzoo.compat.patches import Changes
from dcnzoo.export.aotinductor import export_pt2
from dcnzoo.export.exporters import export_onnx
from dcnzoo.export.picture import CLIPS
from dcnzoo.export.postprocess import ABSENT, best, clip_boxes, keep_boxes, paste_masks, running_max, take
from dcnzoo.openmmlab.export.traced import TESTED, Traced, replace_everywhere
from dcnzoo.openmmlab.export.wrapper import (
    ExportWrapper,
    attend,
    best_pairs,
    check_nms,
    of_class,
    pool,
    suppress,
)


def deployable(detector: nn.Module, skip_postprocess: bool = False) -> ExportWrapper:
    """Wrap a detector for export, in ``eval`` mode.

    Args:
        skip_postprocess: return the head's raw outputs. Only for single-stage detectors with a ``bbox_head``.

    Raises:
        ValueError: the detector is not supported, or its config has a setting that cannot be exported.
    """
    name = type(detector).__name__
    if skip_postprocess:
        if isinstance(detector, TwoStageDetector) or not hasattr(detector, "bbox_head"):
            raise ValueError(f"skip_postprocess: expected a single-stage detector, got {name}")
        return RawHead(detector).eval()
    if type(detector) in (DETR, ConditionalDETR, DABDETR):
        return Detr(detector).eval()
    if type(detector) in (DeformableDETR, DINO):
        return DeformableDetr(detector).eval()
    if type(detector) is DDQDETR:
        return Ddq(detector).eval()
    if isinstance(detector, TwoStagePanopticSegmentor):
        raise unsupported(f"{name}, whose results are panoptic")
    if isinstance(detector, TwoStageDetector):
        for wrapper in (TwoStage, PointRend, Traced):
            if wrapper.supports(detector):
                return wrapper(detector).eval()
        parts = (type(getattr(detector, part, None)).__name__ for part in ("rpn_head", "roi_head"))
        raise unsupported(f"{name} with {' and '.join(parts)}")
    if Traced.supports(detector):
        return Traced(detector).eval()
    if isinstance(detector, SingleStageDetector) and hasattr(detector, "bbox_head"):
        if isinstance(detector.bbox_head, YOLOV3Head):
            return Yolo(detector).eval()
        if type(detector.bbox_head) is YOLOXHead:
            return Yolox(detector).eval()
        if type(detector.bbox_head) is CornerHead:
            return Corners(detector).eval()
        return Dense(detector).eval()
    raise unsupported(name)


def unsupported(got: str, instead: str = "dcnzoo.export.export_onnx exports any module") -> ValueError:
    kinds = "one-stage detectors that predict as BaseDenseHead, YOLOv3, YOLOX, CornerNet, Faster, Mask and "
    kinds += f"Cascade R-CNN, PointRend, DETRs, and detectors of the parts {', '.join(sorted(TESTED))}"
    return ValueError(f"detector: expected a supported kind, got {got}; supported: {kinds}; {instead}")


def export_detector(
    detector: nn.Module,
    images: Tensor,
    path: str | os.PathLike,
    *,
    dynamic: bool = False,
    skip_postprocess: bool = False,
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Write a detector to an ONNX file or, if ``path`` ends in ``.pt2``, to an AOTInductor package.

    Args:
        images: an example, [N, 3, H, W].
        dynamic: batch size, height and width of the ONNX graph are dynamic; otherwise, and in a package,
            they are the example's.
        skip_postprocess: see :func:`deployable`.
        metadata: additional entries for the metadata of the file.
        options: ``opset_version`` and ``deform_conv`` of :func:`dcnzoo.export.export_onnx`.

    Raises:
        ValueError: see :func:`deployable`, :func:`dcnzoo.export.export_onnx` and
            :func:`dcnzoo.export.export_pt2`.
    """
    model = deployable(detector, skip_postprocess)
    if dynamic and model.one_size:
        name = type(detector).__name__
        raise ValueError(f"dynamic: expected False for {name}, whose export supports one size only, got True")
    if dynamic and len(images) == 1:
        images = images.repeat(2, 1, 1, 1)  # torch.export would fix a batch size of 1
    sizes = torch.tensor([images.shape[-2:]] * len(images))  # of images that are not padded
    args = (images, sizes)[: len(model.input_names)]
    if dynamic:
        shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
        options["dynamic_shapes"] = shapes[: len(args)]
    export = export_pt2 if os.fspath(path).endswith(".pt2") else export_onnx
    export(
        model,
        args,
        path,
        input_names=list(model.input_names),
        output_names=list(model.output_names) if model.output_names else None,
        metadata={CLIPS: str(model.clips), **(metadata or {})},
        **options,
    )


def image_size(images: Tensor) -> Tensor:  # (height, width)
    return torch.stack([torch.full((), size, dtype=images.dtype) for size in images.shape[-2:]])


def per_prior(maps: Tensor, channels: int) -> Tensor:  # [N, A·channels, H, W] -> [N, H·W·A, channels]
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, channels)


def decode(coder: nn.Module, priors: Tensor, deltas: Tensor) -> Tensor:  # [N, K, d], [N, K, 4]
    """Decode boxes by the coder, without its clipping, which accepts sizes only as constants."""
    boxes = coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1), max_shape=None)
    return boxes.reshape(*deltas.shape[:2], 4)


def clip(coder: nn.Module, boxes: Tensor, size: Tensor) -> Tensor:  # [..., 4], [2] (height, width)
    """Clip decoded boxes to the image, as the coder does. MMDetection 1's ended at its last pixel."""
    if isinstance(coder, LegacyDeltaXYWHBBoxCoder):
        return clip_boxes(boxes, size - 1)
    return clip_boxes(boxes, size) if coder.clip_border else boxes


def predict_dense(
    head: BaseDenseHead, outputs: tuple, size: Tensor, rpn: bool = False
) -> tuple[Tensor, Tensor]:
    """Predict as ``BaseDenseHead.predict_by_feat``. With ``rpn``, predict as RPNHead: labels are levels."""
    scores, deltas, *factors = outputs
    candidates = []
    priors = head.prior_generator.grid_priors(
        [level.shape[-2:] for level in scores], dtype=scores[0].dtype, device=scores[0].device
    )
    threshold, before = head.test_cfg.get("score_thr", 0), head.test_cfg.get("nms_pre", -1)
    for i, (score, delta, prior) in enumerate(zip(scores, deltas, priors, strict=True)):
        score = per_prior(score, head.cls_out_channels)
        score = score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[..., :-1]
        if not rpn:
            score = torch.where(score > threshold, score, ABSENT)
        score, index, label = best_pairs(score, before)
        delta = take(per_prior(delta, head.bbox_coder.encode_size), index)
        if factors:
            factor = per_prior(factors[0][i], 1)[..., 0].sigmoid().gather(1, index)
            score = torch.where(score >= 0, score * factor, ABSENT)
        boxes = clip(head.bbox_coder, decode(head.bbox_coder, prior[index], delta), size)
        candidates.append((boxes, score, torch.full_like(label, i) if rpn else label))
    together = (torch.cat(levels, 1) for levels in zip(*candidates, strict=True))
    return suppress(head.test_cfg, head, *together, len(scores) if rpn else head.num_classes)[:2]


class Dense(ExportWrapper):
    """RetinaNet, FSAF, FCOS, SSD, ATSS, …: every head with the prediction methods of ``BaseDenseHead``."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__(detector)
        head = type(detector.bbox_head)
        for method in ("predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_post_process"):
            if getattr(head, method, None) is not getattr(BaseDenseHead, method):
                got = f"{type(detector).__name__} with a {head.__name__}, which overrides {method}"
                raise unsupported(got, "--skip-postprocess exports its raw outputs")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.detector.bbox_head
        outputs = head(self.detector.extract_feat(images))
        return predict_dense(head, outputs, image_size(images))


class RawHead(ExportWrapper):
    """The head's outputs, level by level, without post-processing."""

    output_names = None  # they depend on the head

    def forward(self, images: Tensor):
        return self.detector.bbox_head(self.detector.extract_feat(images))


class Yolo(ExportWrapper):
    clips = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.detector.bbox_head
        cfg = head.test_cfg
        (maps,) = head(self.detector.extract_feat(images))
        priors = head.prior_generator.grid_priors([level.shape[-2:] for level in maps], device=images.device)
        boxes, objectness, scores = [], [], []
        for level, prior, stride in zip(maps, priors, head.featmap_strides, strict=True):
            level = per_prior(level, head.num_attrib)
            delta = torch.cat([level[..., :2].sigmoid(), level[..., 2:4]], -1)
            boxes.append(head.bbox_coder.decode(prior.expand_as(delta), delta, stride))
            objectness.append(level[..., 4].sigmoid())
            scores.append(level[..., 5:].sigmoid())
        boxes, objectness, scores = (torch.cat(levels, 1) for levels in (boxes, objectness, scores))
        there = scores > cfg.get("score_thr", 0)
        if cfg.get("conf_thr", -1) > 0:
            there = there & (objectness >= cfg.conf_thr)[..., None]
        scores, index, labels = best_pairs(torch.where(there, scores, ABSENT), cfg.get("nms_pre", -1))
        scores = torch.where(scores >= 0, scores * objectness.gather(1, index), ABSENT)
        return suppress(cfg, head, take(boxes, index), scores, labels, there.shape[-1])[:2]


class Yolox(ExportWrapper):
    """YOLOX (Ge et al. 2021). Like ``YOLOXHead.predict_by_feat``, keeps only the best class per location."""

    clips = False
    most = 1000  # boxes, if test_cfg has no max_per_img: MMDetection has no limit, a graph needs one

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.detector.bbox_head
        outputs = head(self.detector.extract_feat(images))
        sizes = [level.shape[-2:] for level in outputs[0]]
        priors = head.prior_generator.grid_priors(
            sizes, dtype=images.dtype, device=images.device, with_stride=True
        )
        widths = (head.cls_out_channels, 4, 1)
        scores, deltas, objectness = (
            torch.cat([per_prior(level, width) for level in levels], 1)
            for levels, width in zip(outputs, widths, strict=True)
        )
        score, label = scores.sigmoid().max(-1)
        score = score * objectness[..., 0].sigmoid()
        cfg = ConfigDict(head.test_cfg)
        cfg.setdefault("max_per_img", self.most)
        score = torch.where(score >= cfg.score_thr, score, ABSENT)
        boxes = head._bbox_decode(torch.cat(priors), deltas)
        return suppress(cfg, head, boxes, score, label, head.num_classes)[:2]


class Corners(ExportWrapper):
    """CornerNet (Law and Deng 2018): boxes are pairs of corners."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.detector.bbox_head
        cfg = head.test_cfg
        features = self.detector.extract_feat(images)[: head.num_feat_levels]
        with Changes() as changes:
            changes.set(CornerPool, "forward", corner_pool)
            replace_everywhere(changes, get_topk_from_heatmap, best_corners)
            outputs = head.forward_single(features[-1], len(features) - 1)  # other levels: only for training
            heats, embeddings, offsets = outputs[:2], outputs[2:4], outputs[4:]
            heats = [heat.sigmoid() for heat in heats]
            boxes, scores, labels = head._decode_heatmap(
                *heats,
                *offsets,
                *embeddings,
                img_meta=dict(batch_input_shape=heats[0].shape[-2:]),
                k=cfg.corner_topk,
                kernel=cfg.local_maximum_kernel,
                distance_threshold=cfg.distance_threshold,
            )
        boxes = boxes * (image_size(images) / image_size(heats[0])).flip(0).repeat(2)
        return suppress(cfg, head, boxes, scores[..., 0], labels[..., 0], head.num_classes)[:2]


def best_corners(heat: Tensor, k: int) -> tuple[Tensor, ...]:
    """Replace ``get_topk_from_heatmap``: the exporter cannot divide an integer by a symbolic size."""
    height, width = image_size(heat).long()
    scores, index = best(heat.flatten(1), k)
    label, index = index // (height * width), index % (height * width)
    return scores, index, label, index // width, (index % width).float()


def corner_pool(self: CornerPool, values: Tensor) -> Tensor:
    """Replace ``CornerPool.forward``."""
    axis, flip = self.cummax_dim_flip[self.mode]
    return running_max(values.flip(axis), axis).flip(axis) if flip else running_max(values, axis)


class TwoStage(ExportWrapper):
    """Faster, Cascade, Mask and Cascade Mask R-CNN."""

    heads = (StandardRoIHead, CascadeRoIHead)

    @classmethod
    def supports(cls, detector: nn.Module) -> bool:
        roi = detector.roi_head
        pooling = roi.bbox_roi_extractor if cls is PointRend else roi  # PointRend samples points for masks
        extractors = [module for module in pooling.modules() if isinstance(module, BaseRoIExtractor)]
        heads = [module for module in roi.modules() if isinstance(module, BBoxHead)]
        return (
            type(roi) in cls.heads
            and type(getattr(detector, "rpn_head", None)) is RPNHead
            and all(type(each) is SingleRoIExtractor for each in extractors)
            and len(heads) == (roi.num_stages if isinstance(roi, CascadeRoIHead) else 1)
            and not any(head.custom_cls_channels for head in heads)
            and not roi.with_shared_head
        )

    def __init__(self, detector: nn.Module) -> None:
        super().__init__(detector)
        head = detector.roi_head
        cascade = type(head) is CascadeRoIHead
        self.stages = [(i,) for i in range(head.num_stages)] if cascade else [()]
        check_nms(head.test_cfg.nms, type(head).__name__)
        if head.with_mask:
            self.output_names = ("dets", "labels", "masks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        detector, head = self.detector, self.detector.roi_head
        features = detector.extract_feat(images)
        size = image_size(images)
        rpn = detector.rpn_head
        proposals = predict_dense(rpn, rpn(features), size, rpn=True)
        with Changes() as changes:
            changes.set(SingleRoIExtractor, "forward", pool)
            dets, labels = self._boxes(features, *proposals, size)
            if not head.with_mask:
                return dets, labels
            probabilities = self._masks(features, dets, labels)
        masks = paste_masks(probabilities, dets[..., :4].flatten(0, 1), *images.shape[-2:])
        masks = (masks * 255).round().to(torch.uint8)
        return dets, labels, masks.reshape(*labels.shape, *images.shape[-2:])

    def _boxes(
        self, features: tuple[Tensor, ...], proposals: Tensor, levels: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        head = self.detector.roi_head
        boxes, total = proposals[..., :4], 0.0
        for stage in self.stages:
            bbox_head = head.bbox_head[stage[0]] if stage else head.bbox_head
            result = head._bbox_forward(*stage, features, rois_of(boxes))
            scores, deltas = result["cls_score"], result["bbox_pred"]
            total = total + scores
            if stage != self.stages[-1]:
                deltas = deltas.reshape(scores.shape[0], -1, 4)
                if bbox_head.reg_class_agnostic:
                    deltas = deltas[:, 0]
                else:
                    deltas = take(deltas, scores[:, :-1].argmax(1, keepdim=True))[:, 0]
                boxes = decode(bbox_head.bbox_coder, boxes, deltas.reshape(boxes.shape))
                boxes = clip(bbox_head.bbox_coder, boxes, size)
        return self._classify(bbox_head, boxes, levels >= 0, total / len(self.stages), deltas, size)

    def _classify(
        self, bbox_head: nn.Module, rois: Tensor, there: Tensor, scores: Tensor, deltas: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        cfg = self.detector.roi_head.test_cfg
        batch, count = rois.shape[:2]
        classes = bbox_head.num_classes
        scores = scores.softmax(-1)[:, :classes].reshape(batch, count, classes)
        scores = torch.where(there[..., None] & (scores > cfg.score_thr), scores, ABSENT).flatten(1)
        of_roi = 1 if bbox_head.reg_class_agnostic else classes
        deltas = deltas.reshape(batch, count * of_roi, 4)
        boxes = rois[:, :, None].expand(-1, -1, of_roi, -1).reshape(batch, -1, 4)
        boxes = clip(bbox_head.bbox_coder, decode(bbox_head.bbox_coder, boxes, deltas), size)
        boxes = boxes.reshape(batch, count, of_roi, 4).expand(-1, -1, classes, -1).reshape(batch, -1, 4)
        labels = torch.arange(classes, device=rois.device).repeat(count).expand(batch, -1)
        cfg = ConfigDict(cfg, min_bbox_size=-1)  # it applies only to proposals
        return suppress(cfg, bbox_head, boxes, scores, labels, classes)[:2]

    def _masks(self, features: tuple[Tensor, ...], dets: Tensor, labels: Tensor) -> Tensor:
        """Return mask probabilities [N·K, h, w] inside the boxes."""
        head, rois, total = self.detector.roi_head, rois_of(dets[..., :4]), 0.0
        for stage in self.stages:
            total = total + head._mask_forward(*stage, features, rois)["mask_preds"].sigmoid()
        return of_class(total / len(self.stages), labels)[:, 0]


def rois_of(boxes: Tensor) -> Tensor:  # [N, K, 4] -> [N·K, 5], (image, x1, y1, x2, y2)
    images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], 1), boxes], -1).flatten(0, 1)


class PointRend(TwoStage):
    """Mask R-CNN that refines masks at uncertain points (Kirillov et al. 2020, sec. 3.1).

    Like ``PointRendRoIHead``, but only the mask of each box's class is refined.
    """

    heads = (PointRendRoIHead,)

    def _masks(self, features: tuple[Tensor, ...], dets: Tensor, labels: Tensor) -> Tensor:
        head = self.detector.roi_head
        cfg, extractor = head.test_cfg, head.mask_roi_extractor
        boxes = dets[..., :4]
        (stride, *others), level = extractor.featmap_strides, features[0]
        if others or extractor.with_pre or extractor.with_post:
            levels = 1 + len(others)
            raise ValueError(f"PointRend: mask_roi_extractor: expected one level, got {levels}")

        rows, columns = extractor.roi_layers[0].output_size
        grid = generate_grid(labels.numel(), (rows, columns), boxes.device)
        pooled = self._sample(level, stride, boxes, grid)
        coarse = head.mask_head(pooled.reshape(*pooled.shape[:2], rows, columns))

        masks = of_class(coarse, labels)  # [N·K, 1, h, w]
        for step in range(cfg.subdivision_steps):
            masks = F.interpolate(masks, scale_factor=cfg.scale_factor, mode="bilinear", align_corners=False)
            size = masks[0].numel()
            if cfg.subdivision_num_points >= cfg.scale_factor**2 * size and step < cfg.subdivision_steps - 1:
                continue
            index, points = head.point_head.get_roi_rel_points_test(masks, labels, cfg)
            fine = self._sample(level, stride, boxes, points)
            refined = of_class(head.point_head(fine, point_sample(coarse, points)), labels)
            masks = masks.flatten(2).scatter(2, index[:, None], refined).reshape(masks.shape)
        return masks[:, 0].sigmoid()

    @staticmethod
    def _sample(
        features: Tensor,  # [N, C, H, W]
        stride: int,
        boxes: Tensor,  # [N, K, 4]
        points: Tensor,  # [N·K, P, 2], (x, y) from 0 to 1 inside the box
    ) -> Tensor:  # [N·K, C, P]
        batch, count = boxes.shape[:2]
        points = points.reshape(batch, count, -1, 2)
        low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
        absolute = points * (high - low) + low
        sampled = point_sample(features, absolute / (stride * image_size(features).flip(0)))  # [N, C, K, P]
        return sampled.transpose(1, 2).flatten(0, 1)


class Detr(ExportWrapper):
    """DETR, Conditional DETR, DAB-DETR.

    The second input is the size of each image without padding: attention masks the padding.
    """

    input_names = ("input", "img_shape")

    def forward(self, images: Tensor, img_shape: Tensor) -> tuple[Tensor, Tensor]:  # [N, 2], (height, width)
        head = self.detector.bbox_head
        with Changes() as changes:
            # MMDetection clamps three times in a row; the exporter's optimiser drops one of them
            replace_everywhere(changes, inverse_sigmoid, logit)
            hidden = self.transformed(self.detector.extract_feat(images), images, img_shape)
            scores, boxes = self.outputs(hidden)
        count = head.test_cfg.get("max_per_img", scores.shape[1])
        if head.loss_cls.use_sigmoid:
            scores, pair = scores.sigmoid().flatten(1).topk(count)
            index, labels = pair // head.num_classes, pair % head.num_classes
        else:
            scores, classes = scores.softmax(-1)[..., :-1].max(-1)
            scores, index = scores.topk(count)
            labels = classes.gather(1, index)
        centre, extent = take(boxes, index).split(2, -1)
        limit = img_shape.flip(1).repeat(1, 2)[:, None].to(boxes)
        boxes = torch.cat([centre - extent / 2, centre + extent / 2], -1) * limit
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        return torch.cat([boxes, scores[..., None]], -1), labels

    def outputs(self, hidden: dict) -> tuple[Tensor, Tensor]:  # [N, Q, classes], [N, Q, 4]
        """Return the head's scores before their activation, and boxes."""
        scores, boxes = (levels[-1] for levels in self.detector.bbox_head(**hidden))
        return scores, boxes

    def transformed(self, features: tuple[Tensor, ...], images: Tensor, img_shape: Tensor) -> dict:
        """Return the transformer's outputs for the head."""
        detector, features = self.detector, features[-1]
        mask = self.padding(features, images, img_shape)
        position = detector.positional_encoding(mask).flatten(2).transpose(1, 2)
        flat = mask.flatten(1)
        memory = detector.encoder(
            query=features.flatten(2).transpose(1, 2), query_pos=position, key_padding_mask=flat
        )
        decoder_inputs, _ = detector.pre_decoder(memory=memory)
        return detector.forward_decoder(memory_mask=flat, memory_pos=position, **decoder_inputs)

    @staticmethod
    def padding(features: Tensor, images: Tensor, img_shape: Tensor) -> Tensor:  # [N, H, W] of the map
        outside = []
        for axis in (0, 1):  # rows, then columns of the map
            length, size = features.shape[2 + axis], images.shape[2 + axis]
            nearest = torch.arange(length, device=images.device) * size // length
            outside.append(nearest >= img_shape[:, axis, None])
        return outside[0][:, :, None] | outside[1][:, None, :]


class DeformableDetr(Detr):
    """Deformable DETR of one or two stages, DINO."""

    def forward(self, images: Tensor, img_shape: Tensor) -> tuple[Tensor, Tensor]:
        with Changes() as changes:
            changes.set(MultiScaleDeformableAttention, "forward", attend)
            return super().forward(images, img_shape)

    def transformed(self, features: tuple[Tensor, ...], images: Tensor, img_shape: Tensor) -> dict:
        detector = self.detector
        levels = []
        for i, (level, embedding) in enumerate(zip(features, detector.level_embed, strict=True)):
            mask, size = self.padding(level, images, img_shape), image_size(level)
            position = detector.positional_encoding(mask).flatten(2).transpose(1, 2) + embedding
            valid = torch.stack([(~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)], -1) / size.flip(0)  # (x, y)
            y, x = (torch.arange(length, device=images.device) + 0.5 for length in level.shape[-2:])
            place = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1) / size.flip(0)
            place = place / valid[:, None]
            box = torch.cat([place, torch.full_like(place, 0.05 * 2**i)], -1)
            flat = level.flatten(2).transpose(1, 2)
            levels.append((flat, position, mask.flatten(1), place, box, valid, size.long()))
        *per_pixel, valid, sizes = zip(*levels, strict=True)
        memory, position, mask, place, box = (torch.cat(parts, 1) for parts in per_pixel)
        valid, sizes = torch.stack(valid, 1), torch.stack(sizes)  # [N, L, 2], [L, 2]
        ends = sizes.prod(1).cumsum(0)
        geometry = dict(
            spatial_shapes=sizes,
            level_start_index=torch.cat([torch.zeros_like(ends[:1]), ends[:-1]]),
            valid_ratios=valid,
        )
        place = place[:, :, None] * valid[:, None]
        pixels = dict(query_pos=position, key_padding_mask=mask, reference_points=place)
        for layer in detector.encoder.layers:
            memory = layer(query=memory, **pixels, **geometry)

        def proposals(memory: Tensor, mask: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            there = ((box > 0.01) & (box < 0.99)).all(-1, keepdim=True) & ~mask[..., None]
            memory = detector.memory_trans_fc(memory.masked_fill(~there, 0))
            logits = torch.log(box / (1 - box)).masked_fill(~there, torch.inf)
            return detector.memory_trans_norm(memory), logits

        with Changes() as changes:  # MMDetection's loop over the sizes turns them into constants
            changes.set(detector, "gen_encoder_output_proposals", proposals)
            decoder_inputs, _ = detector.pre_decoder(memory, mask, sizes)
        if type(detector) is not DINO:
            return detector.forward_decoder(memory_mask=mask, **geometry, **decoder_inputs)
        # not forward_decoder, whose len(query) turns the batch size into a constant
        hidden, references = detector.decoder(
            query=decoder_inputs["query"],
            value=decoder_inputs["memory"],
            key_padding_mask=mask,
            self_attn_mask=decoder_inputs["dn_mask"],
            reference_points=decoder_inputs["reference_points"],
            reg_branches=detector.bbox_head.reg_branches,
            **geometry,
        )
        return dict(hidden_states=hidden, references=list(references))


class Ddq(DeformableDetr):
    """DDQ DETR (Zhang et al. 2023): NMS selects distinct queries, before the decoder and in each layer."""

    one_size = True  # MMDetection's decoder takes the batch size as a constant

    def __init__(self, detector: nn.Module) -> None:
        super().__init__(detector)
        check_nms(detector.dqs_cfg, type(detector).__name__)

    def transformed(self, features: tuple[Tensor, ...], images: Tensor, img_shape: Tensor) -> dict:
        with Changes() as changes:
            changes.set(self.detector, "pre_decoder", self.first_queries)
            changes.set(self.detector.decoder, "select_distinct_queries", self.select)
            return super().transformed(features, images, img_shape)

    def outputs(self, hidden: dict) -> tuple[Tensor, Tensor]:
        scores, boxes = super().outputs(hidden)
        mask = self.masks.pop()[:: self.heads, 0]
        return torch.where(mask[..., None], -torch.inf, scores), boxes

    @property
    def masks(self) -> list[Tensor]:  # of each decoder layer, [N·heads, Q, Q]
        return self.detector.cache_dict["distinct_query_mask"]

    @property
    def heads(self) -> int:
        return self.detector.cache_dict["num_heads"]

    def first_queries(self, memory: Tensor, mask: Tensor, sizes: Tensor) -> tuple[dict, dict]:
        """Replace ``DDQDETR.pre_decoder``."""
        detector, head, count = self.detector, self.detector.bbox_head, self.detector.num_queries
        encoded, logits = detector.gen_encoder_output_proposals(memory, mask, sizes)
        scores = head.cls_branches[detector.decoder.num_layers](encoded).max(-1)[0].sigmoid()
        boxes = head.reg_branches[detector.decoder.num_layers](encoded) + logits
        index, there = self.distinct(boxes.sigmoid(), scores, count)
        query = torch.where(there[..., None], take(detector.query_map(memory), index), 0)
        places = torch.where(there[..., None], take(boxes, index), 0).sigmoid()
        return dict(query=query, memory=memory, reference_points=places, dn_mask=None), {}

    def select(self, places: Tensor, query: Tensor, mask: Tensor, layer_index: int) -> Tensor:
        """Replace ``DDQTransformerDecoder.select_distinct_queries``."""
        scores = self.detector.cache_dict["cls_branches"][layer_index](query).sigmoid().max(-1).values
        scores = torch.where(mask[:: self.heads, 0], ABSENT, scores)
        count = query.shape[1]
        index, there = self.distinct(places, scores, count)
        kept = ((index[..., None] == torch.arange(count, device=index.device)) & there[..., None]).any(1)
        mask = ~(kept[:, :, None] | kept[:, None])
        mask = mask[:, None].expand(-1, self.heads, -1, -1).flatten(0, 1)
        self.masks[:] = [mask]
        return mask

    def distinct(self, boxes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return indices of the best distinct boxes (x, y, width, height), and whether they are used."""
        centre, extent = boxes.split(2, -1)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], -1)
        threshold = self.detector.dqs_cfg["iou_threshold"]
        labels = torch.zeros_like(scores, dtype=torch.long)
        _, labels, index = keep_boxes(corners, scores, labels, threshold, count, 1, 0)
        return index, labels >= 0


def logit(x: Tensor, eps: float = 1e-5) -> Tensor:
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))
