"""How each kind of module of MMDetection is exported: one table.

``predict`` of a detector is traced, on a copy. Code that cannot be traced is replaced:

==================================================  =================================================
the code                                            its replacement
==================================================  =================================================
a method: a loop over images, or results whose      a mixin in ``mixins``, and its :class:`Rule` here
number depends on the data
such a function of MMDetection or mmcv              ``functions.FUNCTIONS``
an autograd function; the attribute of a module     ``functions.ATTRIBUTES``
a function of torch that makes a size constant      ``symbolic_sizes.REPLACED``
an operator that makes the batch size constant      ``dcnzoo.export.vmap.BATCHING``
a selection or a pooling, for ONNX                  an operator in ``dcnzoo.export.fixed_size``
==================================================  =================================================

Three values reach their readers through MMDetection's code, not as arguments: ``functions.proposals``, from
``mixins.roi.RoIHead.predict`` to the NMS of its boxes; ``mask_inputs``, a field of the results, from
``RoIHead.predict_mask`` to ``Predictor``; ``sizes`` of a tensor, from ``symbolic_sizes.level_sizes`` to the
loops over it.
"""

import copy
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmcv import ops as mmcv_ops
from mmdet.models import backbones, dense_heads, detectors, layers, necks, roi_heads
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.tood_head import TOODHead
from mmdet.models.detectors.base import BaseDetector
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from torch import nn

from dcnzoo.detect.backends import BOX_MASKS, MASK_LOGITS
from dcnzoo.openmmlab.calls import call_settings
from dcnzoo.openmmlab.export.mixins import boxes, features, masks, roi, transformers
from dcnzoo.openmmlab.export.mixins import layers as own

PARTS = ("rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head")
SINGLE = "_predict_by_feat_single"
DENSE = ("predict", "predict_by_feat", "_bbox_post_process")
MASK = ("predict", "predict_by_feat", SINGLE)
ROI = ("predict", "predict_bbox", "predict_mask")
POINTS = (*ROI, "_mask_point_forward_test")
TRANSFORMER = ("predict", "predict_by_feat")
DEFORMABLE = ("pre_transformer", "gen_encoder_output_proposals", "add_pred_to_datasample")
LAYER = ("forward",)


@dataclass(frozen=True)
class Rule:
    """How one kind of module is exported. The nearest base class with a rule decides.

    Attributes:
        kind: the class.
        relies_on: methods whose code the rule relies on. A subclass that overrides one is refused.
        mixin: in front of the class of the part, in the copy that is traced.
        refused: why such a module cannot be exported.
        masks: the output of a detector with this head, if it predicts masks: ``"masks"`` of the input,
            ``"box_masks"`` or ``"mask_logits"``.
    """

    kind: type[nn.Module]
    relies_on: tuple[str, ...] = ()
    mixin: type[nn.Module] | None = None
    refused: str = ""
    masks: str = ""


HEADS = (
    Rule(BaseDenseHead, DENSE, boxes.DenseHead),
    Rule(dense_heads.RPNHead, (*DENSE, SINGLE), boxes.RPNHead),
    Rule(dense_heads.EmbeddingRPNHead, ("predict",)),
    Rule(dense_heads.SABLRetinaHead, DENSE, boxes.DenseHead),
    Rule(dense_heads.CenterNetHead, DENSE, boxes.DenseHead),
    Rule(dense_heads.CondInstBboxHead, DENSE, boxes.DenseHead),
    Rule(dense_heads.YOLOV3Head, DENSE, boxes.YOLOV3Head),
    Rule(dense_heads.YOLOXHead, DENSE, boxes.YOLOXHead),
    Rule(TOODHead, (*DENSE, "deform_sampling"), boxes.TOODHead),
    Rule(dense_heads.PAAHead, refused="its boxes are averaged by their votes"),
    Rule(dense_heads.CornerHead, (*DENSE, SINGLE), boxes.CornerHead),
    Rule(dense_heads.RTMDetInsHead, (*DENSE, "_bbox_mask_post_process"), masks.RTMDetInsHead, masks="masks"),
    Rule(dense_heads.CondInstMaskHead, MASK, masks="masks"),
    Rule(dense_heads.SOLOHead, MASK, masks.SOLOHead, masks="masks"),
    Rule(dense_heads.SOLOV2Head, MASK, masks.SOLOV2Head, masks="masks"),
    Rule(dense_heads.MaskFormerHead, refused="its masks are not of instances alone"),
    Rule(dense_heads.Mask2FormerHead, ("predict",), masks=MASK_LOGITS),
    Rule(MaskFormerFusionHead, ("predict", "instance_postprocess")),
    Rule(roi_heads.StandardRoIHead, ROI, roi.RoIHead, masks=BOX_MASKS),
    Rule(roi_heads.GridRoIHead, ROI, roi.RoIHead, masks=BOX_MASKS),
    Rule(roi_heads.TridentRoIHead, (*ROI, "merge_trident_bboxes"), roi.RoIHead, masks=BOX_MASKS),
    Rule(roi_heads.MaskScoringRoIHead, ROI, roi.MaskScoringRoIHead, masks=BOX_MASKS),
    Rule(roi_heads.PointRendRoIHead, POINTS, roi.PointRendRoIHead, masks=BOX_MASKS),
    Rule(roi_heads.CascadeRoIHead, ROI, roi.CascadeRoIHead, masks=BOX_MASKS),
    Rule(roi_heads.HybridTaskCascadeRoIHead, ROI, roi.HybridTaskCascadeRoIHead, masks=BOX_MASKS),
    Rule(roi_heads.SparseRoIHead, ROI, masks=BOX_MASKS),
    Rule(roi_heads.SCNetRoIHead, refused="its context is added image by image"),
    Rule(roi_heads.FCNMaskHead, (SINGLE,), roi.FCNMaskHead),
    Rule(roi_heads.MaskIoUHead, ("predict_by_feat",), roi.MaskIoUHead),
    Rule(dense_heads.DETRHead, TRANSFORMER, transformers.DETRHead),
    Rule(dense_heads.ConditionalDETRHead, TRANSFORMER, transformers.DETRHead),
    Rule(dense_heads.DABDETRHead, TRANSFORMER, transformers.DETRHead),
    Rule(dense_heads.DeformableDETRHead, TRANSFORMER, transformers.DETRHead),
    Rule(dense_heads.DDQDETRHead, refused="the number of its queries depends on the picture"),
)
DETECTORS = (
    Rule(BaseDetector, (), features.Detector),
    Rule(detectors.MaskFormer, ("predict",), masks.MaskFormer),
    Rule(detectors.TwoStagePanopticSegmentor, refused="its results are panoptic"),
    Rule(DetectionTransformer, ("add_pred_to_datasample",), transformers.DetectionTransformer),
    Rule(detectors.DETR, ("pre_transformer", "add_pred_to_datasample"), transformers.DETR),
    Rule(detectors.DeformableDETR, DEFORMABLE, transformers.DeformableDETR),
    Rule(detectors.DINO, (*DEFORMABLE, "forward_decoder"), transformers.DINO),
)
LAYERS = (  # also replaced in raw outputs; a subclass with a method of its own stays as it is
    Rule(layers.MSDeformAttnPixelDecoder, LAYER, masks.MSDeformAttnPixelDecoder),
    Rule(roi_heads.SingleRoIExtractor, LAYER, roi.SingleRoIExtractor),
    Rule(mmcv_ops.RoIAlign, LAYER, roi.RoIAlign),
    Rule(mmcv_ops.SimpleRoIAlign, LAYER, roi.SimpleRoIAlign),
    Rule(mmcv_ops.CornerPool, LAYER, own.CornerPool),
    Rule(nn.GroupNorm, LAYER, own.GroupNorm),
    Rule(roi_heads.BBoxHead, ("refine_bboxes",), roi.BBoxHead),  # SABLHead has its own
)
RULES = HEADS + DETECTORS + LAYERS
BY_KIND = {rule.kind: rule for rule in RULES}
assert len(BY_KIND) == len(RULES), "a class has two rules"

# only for the size of the example: adaptive maximum pooling of a symbolic size has no ONNX operator; padding
# takes torch.export too long
ONE_SIZE = (necks.BFP, backbones.EfficientNet, backbones.SwinTransformer)


def copied(detector: nn.Module) -> Any:
    """Copy a detector, but for its weights, which both share. No call changes its settings meanwhile."""
    weights = itertools.chain(detector.parameters(), detector.buffers())
    with call_settings(detector):
        return copy.deepcopy(detector, {id(weight): weight for weight in weights})


def copy_for_tracing(detector: nn.Module, layers_only: bool = False) -> Any:
    """Copy a detector, and put the mixins in front of its classes; those of heads unless ``layers_only``."""
    traced = copied(detector)
    mixins = {}  # found before features.Head changes a class
    for part in traced.modules():
        rule = rule_for(type(part))
        if rule is None or rule.mixin is None or (layers_only and rule not in LAYERS):
            continue
        if not reason_to_refuse(part):
            mixins[part] = rule.mixin
    for name, head in ({} if layers_only else parts_of(traced)).items():
        if inputs := inputs_of(head):
            put_in_front(features.Head, head)
            head._dcnzoo_name, head._dcnzoo_inputs = name, inputs
    for part, mixin in mixins.items():
        put_in_front(mixin, part)
    return traced


def has_one_size(detector: nn.Module) -> bool:
    return any(isinstance(part, ONE_SIZE) for part in detector.modules())


def put_in_front(mixin: type[nn.Module], part: nn.Module) -> None:
    kind = type(part)
    part.__class__ = type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


def inputs_of(head: nn.Module) -> int:
    """Return how many of (features, data samples) a head has as inputs; 0 if it has others or none.

    0 also for TOODHead, which loops over the images: ``torch.vmap`` calls its ``forward``, too.
    """
    if type(head).forward is nn.Module.forward or isinstance(head, TOODHead):
        return 0
    _, *others = inspect.signature(head.forward).parameters
    return {(): 1, ("batch_data_samples",): 2}.get(tuple(others), 0)


def rule_for(kind: type) -> Rule | None:
    return next((BY_KIND[base] for base in kind.__mro__ if base in BY_KIND), None)


def reason_to_refuse(part: nn.Module) -> str:
    """Why a module cannot be exported; empty if it can."""
    kind, rule = type(part), rule_for(type(part))
    if rule is None:
        return f"{kind.__name__} has no rule"
    if rule.refused:
        return f"{kind.__name__}: {rule.refused}"
    for method in rule.relies_on:
        if getattr(kind, method, None) is not getattr(rule.kind, method, None):
            return f"{kind.__name__} overrides {rule.kind.__name__}.{method}"
    return ""


def parts_of(detector: nn.Module) -> dict[str, Any]:
    """Return the heads of a detector by their names."""
    parts = {name: getattr(detector, name, None) for name in PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def masks_of(detector: nn.Module) -> str:
    """Return the output with a detector's masks: ``masks`` of the :class:`Rule` of a head; empty without."""
    heads = [head for head in parts_of(detector).values() if getattr(head, "with_mask", True)]
    rules = (rule_for(type(head)) for head in heads)
    return next((rule.masks for rule in rules if rule is not None and rule.masks), "")


def reason_to_refuse_detector(detector: nn.Module) -> str:
    """Why a detector cannot be exported; empty if it can."""
    return next(filter(None, _reasons(detector)), "")


def _reasons(detector: nn.Module) -> Iterator[str]:
    """Yield what each check says, empty if nothing; later checks need what the earlier ones require."""
    if not parts_of(detector):
        yield f"{type(detector).__name__} has no head"
    yield reason_to_refuse(detector)
    yield _unsupported_settings(detector)
    yield from map(_unsupported_pooling, detector.modules())
    yield from map(reason_to_refuse, _parts_with_rules(detector))


def _unsupported_settings(detector: nn.Module) -> str:
    name, parts = type(detector).__name__, parts_of(detector)
    if "roi_head" in parts and "rpn_head" not in parts:
        return f"the proposals of {name} are an input"
    if getattr(parts.get("roi_head"), "test_branch_idx", 0) == -1:
        return f"{name} predicts with all branches: expected test_branch_idx from 0"
    if (fusion := getattr(detector, "panoptic_fusion_head", None)) is not None:
        settings = fusion.test_cfg
        if settings.get("panoptic_on", True) or settings.get("semantic_on", False):
            return f"the results of {name} are panoptic or semantic"
    return ""


def _unsupported_pooling(part: nn.Module) -> str:
    for layer in getattr(part, "roi_layers", ()):
        known = isinstance(layer, mmcv_ops.RoIAlign | mmcv_ops.SimpleRoIAlign)
        # ONNX's "max" takes the maximum of weighted neighbours, not of samples
        if not known or getattr(layer, "pool_mode", "avg") != "avg":
            return f"{type(part).__name__} pools by {type(layer).__name__}, not by RoIAlign with 'avg'"
    return ""


def _parts_with_rules(detector: nn.Module) -> list[nn.Module]:
    """Return the heads, which must have a rule, and modules other than layers that have one."""
    heads = [*parts_of(detector).values()]
    if (fusion := getattr(detector, "panoptic_fusion_head", None)) is not None:
        heads.append(fusion)
    rules = ((part, rule_for(type(part))) for part in detector.modules())
    return heads + [part for part, rule in rules if rule is not None and rule not in LAYERS]
