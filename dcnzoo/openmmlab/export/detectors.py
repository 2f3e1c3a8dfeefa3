"""Wrap MMDetection's detectors for export: from images to boxes, labels and masks.

``deployable(detector)`` returns a module that computes the same as ``detector.predict`` with
``rescale=False``, for a whole batch and with outputs of a fixed size, so that it exports to one graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models import detectors
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor, nn
from torch.export import Dim

from dcnzoo.compat.patches import Changes
from dcnzoo.detect.outputs import CLIPS
from dcnzoo.export.aotinductor import export_pt2
from dcnzoo.export.fixed_size import ABSENT, keep_boxes, take
from dcnzoo.export.onnx import export_onnx
from dcnzoo.export.vmap import symbolic_batches
from dcnzoo.openmmlab.export.traced import TESTED, Traced, not_traceable
from dcnzoo.openmmlab.export.wrapper import ExportWrapper, attend, image_size, replace_everywhere


def deployable(detector: nn.Module, skip_postprocess: bool = False) -> ExportWrapper:
    """Wrap a detector for export, in ``eval`` mode.

    Args:
        skip_postprocess: return the head's raw outputs. Only for single-stage detectors with a ``bbox_head``.

    Raises:
        ValueError: the detector is not supported, or its config has a setting that cannot be exported.
    """
    name = type(detector).__name__
    single_stage = hasattr(detector, "bbox_head") and not isinstance(detector, detectors.TwoStageDetector)
    if skip_postprocess:
        if not single_stage:
            raise ValueError(f"skip_postprocess: expected a single-stage detector, got {name}")
        return RawHead(detector).eval()
    if wrapper := WRAPPERS.get(type(detector)):
        return wrapper(detector).eval()
    if reason := not_traceable(detector):
        kinds = "DETRs, one-stage detectors that predict as BaseDenseHead, and detectors of the parts "
        kinds += ", ".join(sorted(TESTED))
        instead = "--skip-postprocess exports its raw outputs" if single_stage else ""
        instead = instead or "dcnzoo.export.export_onnx exports any module"
        raise ValueError(f"detector: expected a supported kind, got {reason}; supported: {kinds}; {instead}")
    return Traced(detector).eval()


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
    with symbolic_batches():
        export(
            model,
            args,
            path,
            input_names=list(model.input_names),
            output_names=list(model.output_names) if model.output_names else None,
            metadata={CLIPS: str(model.clips), **(metadata or {})},
            **options,
        )


class RawHead(ExportWrapper):
    """The head's outputs, level by level, without post-processing."""

    output_names = None  # they depend on the head

    def forward(self, images: Tensor):
        return self.detector.bbox_head(self.detector.extract_feat(images))


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
            changes.set(MultiScaleDeformableAttention, "forward", attend)
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
        if type(detector) is not detectors.DINO:
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
        if detector.dqs_cfg.get("type", "nms") != "nms":
            raise ValueError(f"DDQDETR: dqs_cfg: expected type='nms', got {detector.dqs_cfg['type']!r}")

    def transformed(self, features: tuple[Tensor, ...], images: Tensor, img_shape: Tensor) -> dict:
        with Changes() as changes:
            changes.set(self.detector, "pre_decoder", self.first_queries)
            changes.set(self.detector.decoder, "select_distinct_queries", self.select)
            return super().transformed(features, images, img_shape)

    def outputs(self, hidden: dict) -> tuple[Tensor, Tensor]:
        scores, boxes = super().outputs(hidden)
        cache = self.detector.cache_dict  # with the mask of each decoder layer, [N·heads, Q, Q]
        mask = cache["distinct_query_mask"].pop()[:: cache["num_heads"], 0]
        return torch.where(mask[..., None], -torch.inf, scores), boxes

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
        cache = self.detector.cache_dict
        heads = cache["num_heads"]
        scores = cache["cls_branches"][layer_index](query).sigmoid().max(-1).values
        scores = torch.where(mask[::heads, 0], ABSENT, scores)
        count = query.shape[1]
        index, there = self.distinct(places, scores, count)
        kept = ((index[..., None] == torch.arange(count, device=index.device)) & there[..., None]).any(1)
        mask = ~(kept[:, :, None] | kept[:, None])
        mask = mask[:, None].expand(-1, heads, -1, -1).flatten(0, 1)
        cache["distinct_query_mask"] = [mask]
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


WRAPPERS = {
    detectors.DETR: Detr,
    detectors.ConditionalDETR: Detr,
    detectors.DABDETR: Detr,
    detectors.DeformableDETR: DeformableDetr,
    detectors.DINO: DeformableDetr,
    detectors.DDQDETR: Ddq,
}
