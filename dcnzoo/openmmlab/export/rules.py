"""How each kind of module of MMDetection is exported: one table.

``predict`` of a detector is traced. What cannot be traced is replaced meanwhile: functions whose results have
a size that depends on the data (selection by score, NMS, RoIAlign of a pyramid), and loops over images.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from mmcv import ops as mmcv_ops
from mmcv.ops.carafe import CARAFEFunction
from mmdet.models import backbones, dense_heads, detectors, layers, necks, roi_heads
from mmdet.models.dense_heads import tood_head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmdet.models.utils import filter_scores_and_topk
from mmdet.models.utils.gaussian_target import get_topk_from_heatmap
from mmengine.structures import BaseDataElement
from torch import nn

from dcnzoo.compat.mmcv import deform_conv
from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.export.replacements import boxes, masks, roi, transformers
from dcnzoo.openmmlab.export.replacements import layers as own
from dcnzoo.openmmlab.export.symbolic_sizes import number_of_rows

PARTS = ("rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head")
SINGLE = "_predict_by_feat_single"
DENSE = ("predict", "predict_by_feat", "_bbox_post_process")
MASK = ("predict", "predict_by_feat", SINGLE)
ROI = ("predict", "predict_bbox", "predict_mask")
ROI_HEADS = (
    *(roi_heads.StandardRoIHead, roi_heads.MaskScoringRoIHead, roi_heads.GridRoIHead),
    *(roi_heads.CascadeRoIHead, roi_heads.HybridTaskCascadeRoIHead, roi_heads.SparseRoIHead),
)
TRANSFORMER = ("predict", "predict_by_feat")


@dataclass(frozen=True)
class Rule:
    """How one kind of module is exported. The nearest base class with a rule decides.

    Attributes:
        kind: the class.
        predicts: methods whose code the rule relies on; a subclass that overrides one is refused.
        instead, around: replacements of methods, and wrappers (:meth:`Changes.wrap`), while it is traced.
        has_masks: whether a module of this kind predicts masks, unless its ``with_mask`` is False.
        one_size: whether the graph supports the number and size of the example's images only.
        refused: why such a module cannot be exported.
    """

    kind: type[nn.Module]
    predicts: tuple[str, ...] = ()
    instead: Mapping[str, Callable] = field(default_factory=dict)
    around: Mapping[str, Callable] = field(default_factory=dict)
    has_masks: bool = False
    one_size: bool = False
    refused: str = ""


_rpn: dict[str, Callable] = {"_bbox_post_process": boxes.post_process, SINGLE: boxes.propose}
RULES = (
    # heads
    Rule(BaseDenseHead, DENSE, instead={"_bbox_post_process": boxes.post_process}),
    Rule(dense_heads.RPNHead, (*DENSE, SINGLE), instead=_rpn),
    Rule(dense_heads.EmbeddingRPNHead, ("predict",)),
    *(
        Rule(kind, DENSE)
        for kind in (dense_heads.SABLRetinaHead, dense_heads.CenterNetHead, dense_heads.CondInstBboxHead)
    ),
    Rule(dense_heads.YOLOV3Head, DENSE, around={"predict_by_feat": boxes.drop_uncertain}),
    Rule(dense_heads.YOLOXHead, DENSE, instead={"predict_by_feat": boxes.keep_best_classes}),
    Rule(dense_heads.PAAHead, refused="its boxes are averaged by their votes"),
    Rule(dense_heads.CornerHead, (*DENSE, SINGLE), instead={SINGLE: boxes.pair_corners}),
    Rule(
        dense_heads.RTMDetInsHead,
        (*DENSE, "_bbox_mask_post_process"),
        around={"_bbox_mask_post_process": masks.mark_small},
        has_masks=True,
    ),
    Rule(dense_heads.CondInstMaskHead, MASK, has_masks=True),
    Rule(dense_heads.SOLOHead, MASK, instead={SINGLE: masks.segment_by_place}, has_masks=True),
    Rule(dense_heads.SOLOV2Head, MASK, instead={SINGLE: masks.segment_by_kernel}, has_masks=True),
    Rule(dense_heads.MaskFormerHead, refused="its masks are not of instances alone"),
    Rule(dense_heads.Mask2FormerHead, ("predict",), has_masks=True),
    Rule(MaskFormerFusionHead, ("predict", "instance_postprocess")),
    *(Rule(kind, ROI, has_masks=True) for kind in ROI_HEADS),
    Rule(roi_heads.TridentRoIHead, (*ROI, "merge_trident_bboxes")),
    Rule(
        roi_heads.PointRendRoIHead,
        ROI,
        instead={"predict_mask": roi.predict_refined, "_mask_point_forward_test": roi.refine_masks},
        has_masks=True,
    ),
    Rule(roi_heads.SCNetRoIHead, refused="its context is added image by image"),
    Rule(roi_heads.BBoxHead, instead={"refine_bboxes": roi.refine}),
    Rule(roi_heads.FCNMaskHead, instead={SINGLE: roi.masks_of_classes}),
    Rule(dense_heads.DETRHead, TRANSFORMER, instead={"predict_by_feat": transformers.image_by_image}),
    *(Rule(kind, TRANSFORMER) for kind in (dense_heads.ConditionalDETRHead, dense_heads.DABDETRHead)),
    Rule(
        dense_heads.DeformableDETRHead, TRANSFORMER, instead={"predict_by_feat": transformers.image_by_image}
    ),
    Rule(dense_heads.DDQDETRHead, refused="the number of its queries depends on the picture"),
    # detectors
    Rule(detectors.MaskFormer, ("predict",), instead={"predict": masks.predict_instances}),
    Rule(detectors.TwoStagePanopticSegmentor, refused="its results are panoptic"),
    Rule(detectors.DETR, ("pre_transformer",), instead={"pre_transformer": transformers.before_transformer}),
    Rule(
        detectors.DeformableDETR,
        ("pre_transformer", "gen_encoder_output_proposals"),
        instead={"pre_transformer": transformers.before_deformable},
    ),
    # layers
    Rule(layers.MSDeformAttnPixelDecoder, instead={"forward": masks.decode_pixels}),
    Rule(roi_heads.SingleRoIExtractor, instead={"forward": roi.pool}),
    Rule(mmcv_ops.RoIAlign, instead={"forward": roi.align}),
    Rule(mmcv_ops.SimpleRoIAlign, instead={"forward": roi.sample_rois}),
    Rule(mmcv_ops.CornerPool, instead={"forward": own.corner_pool}),
    Rule(tood_head.TOODHead, DENSE, instead={"deform_sampling": own.sample_shifted}),
    Rule(nn.GroupNorm, instead={"forward": own.normalise_groups}),
    # with a symbolic size: adaptive maximum pooling has no ONNX operator; padding takes torch.export too long
    *(Rule(kind, one_size=True) for kind in (necks.BFP, backbones.EfficientNet, backbones.SwinTransformer)),
)
BY_KIND = {rule.kind: rule for rule in RULES}

# functions, in every module that imports them under their names
FUNCTIONS: dict[Callable, Callable] = {
    filter_scores_and_topk: boxes.first_pairs,
    mmcv_ops.batched_nms: boxes.keep_all,
    get_topk_from_heatmap: boxes.best_peaks,
    inverse_sigmoid: transformers.logit,
}
# attributes of modules and of classes that are no layers
ATTRIBUTES: dict[tuple[Any, str], Any] = {
    (mmcv_ops.deform_conv.DeformConv2dFunction, "forward"): own.without_autograd(deform_conv.deform_conv2d),
    (mmcv_ops.modulated_deform_conv.ModulatedDeformConv2dFunction, "forward"): own.without_autograd(
        deform_conv.modulated_deform_conv2d
    ),
    # in mmcv and MMDetection, these call autograd functions, which torch.vmap does not accept
    (sys.modules["mmcv.ops.carafe"], "carafe"): partial(CARAFEFunction.forward, SimpleNamespace()),
    (tood_head, "sigmoid_geometric_mean"): lambda x, y: (x.sigmoid() * y.sigmoid()).sqrt(),
    (detectors.dino, "len"): number_of_rows,
    # the number of rows depends on the data, and range() would make it a constant of the graph
    (roi_heads.mask_scoring_roi_head, "range"): torch.arange,
    (roi_heads.mask_heads.maskiou_head, "range"): torch.arange,
}


def apply(changes: Changes) -> None:
    """Replace what cannot be traced."""
    for function, replacement in FUNCTIONS.items():
        replace_everywhere(changes, function, replacement)
    for (owner, name), replacement in ATTRIBUTES.items():
        changes.set(owner, name, replacement)
    # a set: the order of a file's nodes would depend on PYTHONHASHSEED
    changes.wrap(BaseDataElement, "keys", lambda keys, self: sorted(keys(self)))
    for rule in RULES:
        for name, replacement in rule.instead.items():
            changes.set(rule.kind, name, replacement)
        for name, function in rule.around.items():
            changes.wrap(rule.kind, name, function)


def replace_everywhere(changes: Changes, original: Callable, replacement: Callable) -> None:
    """Replace a function in all modules that import it, also where a patch wraps it."""
    function = inspect.unwrap(original)
    for module in list(sys.modules.values()):
        value = getattr(module, "__dict__", {}).get(original.__name__)
        if callable(value) and inspect.unwrap(value) is function:
            changes.set(module, original.__name__, replacement)


def rule_for(kind: type) -> Rule | None:
    return next((BY_KIND[base] for base in kind.__mro__ if base in BY_KIND), None)


def reason_to_refuse(part: nn.Module) -> str:
    """Why a module cannot be exported; empty if it can."""
    kind, rule = type(part), rule_for(type(part))
    if rule is None:
        return f"{kind.__name__} has no rule"
    if rule.refused:
        return f"{kind.__name__}: {rule.refused}"
    for method in rule.predicts:
        if getattr(kind, method, None) is not getattr(rule.kind, method, None):
            return f"{kind.__name__} overrides {rule.kind.__name__}.{method}"
    return ""


def parts_of(detector: nn.Module) -> dict[str, nn.Module]:
    """Return the heads of a detector by their names."""
    parts = {name: getattr(detector, name, None) for name in PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def reason_to_refuse_detector(detector: nn.Module) -> str:
    """Why a detector cannot be exported; empty if it can."""
    name, parts = type(detector).__name__, parts_of(detector)
    if not parts:
        return f"{name} has no head"
    if rule_for(type(detector)) is not None and (reason := reason_to_refuse(detector)):
        return reason
    if "roi_head" in parts and "rpn_head" not in parts:
        return f"the proposals of {name} are an input"
    if getattr(parts.get("roi_head"), "test_branch_idx", 0) == -1:
        return f"{name} predicts with all branches: expected test_branch_idx from 0"
    fusion = getattr(detector, "panoptic_fusion_head", None)
    if fusion is not None:
        settings = fusion.test_cfg
        if settings.get("panoptic_on", True) or settings.get("semantic_on", False):
            return f"the results of {name} are panoptic or semantic"
        parts["panoptic_fusion_head"] = fusion
    return next(filter(None, map(reason_to_refuse, parts.values())), "")
