"""Export of MMDetection's own ``predict``.

The functions in it whose results have a size that depends on the data (selection by score, NMS, RoIAlign of
a pyramid) are replaced (:mod:`dcnzoo.openmmlab.export.replaced`). MMDetection loops over the images of a
batch after the network. Here, ``torch.vmap`` calls it for one image, so that the number of images stays
dynamic. Images fill the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import layers
from mmdet.models.backbones import EfficientNet, SwinTransformer
from mmdet.models.dense_heads import tood_head
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import TwoStagePanopticSegmentor
from mmdet.models.necks import BFP
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dcnzoo.compat.patches import Changes
from dcnzoo.export.fixed_size import ABSENT, paste_masks
from dcnzoo.openmmlab.export import wrapper
from dcnzoo.openmmlab.export.replaced import keep_best, replace_functions


class Traced(wrapper.ExportWrapper):
    """Any detector whose ``predict`` consists of the functions in ``REPLACED`` and of traceable ones."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__(detector)
        kinds = {type(part).__name__ for part in parts_of(detector).values()}
        roi_head = getattr(detector, "roi_head", None)
        if (roi_head is not None and roi_head.with_mask) or kinds & WITH_MASKS:
            self.output_names = ("dets", "labels", "masks")
        self.clips = not kinds & UNCLIPPED
        self.one_size = any(isinstance(part, ONE_SIZE) for part in detector.modules())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = images.shape[-2:]
        sample = wrapper.data_sample(size, size)
        heads = [head for head in parts_of(self.detector).values() if inputs_of(head)]
        with Changes() as changes, wrapper.SymbolicSizes():
            replace_functions(changes)
            features = self.detector.extract_feat(images)
            outputs = [head(*(features, [sample])[: inputs_of(head)]) for head in heads]
            leaves, structure = tree_flatten((features, outputs))

            def predict(*tensors: Tensor) -> tuple[Tensor, ...]:
                parts = iter(tensors)  # of one image; some outputs of heads are None
                image = [next(parts)[None] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                features, outputs = tree_unflatten(image, structure)
                return self.predict_image(features, dict(zip(heads, outputs, strict=True)), sample)

            return torch.vmap(predict)(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))

    def predict_image(
        self, features: tuple[Tensor, ...], outputs: dict[nn.Module, Any], sample: DetDataSample
    ) -> tuple[Tensor, ...]:
        """Call the detector's ``predict`` with the features and outputs of heads of one image."""
        detector, proposed = self.detector, []
        with Changes() as changes:
            changes.set(detector, "extract_feat", lambda _: features)
            for head, output in outputs.items():
                changes.set(head, "forward", lambda *_, output=output: output)
            if hasattr(detector, "roi_head"):
                changes.wrap(detector.rpn_head, "predict", partial(note_proposals, proposed))
                limits = {name: detector.roi_head.test_cfg.get(name, 0) for name in LIMITS}
                best_boxes = partial(keep_best, proposed=proposed, limits=limits)
                wrapper.replace_everywhere(changes, layers.multiclass_nms, best_boxes)
            changes.wrap(F, "conv2d", convolve)
            (sample,) = detector.predict(None, [sample], rescale=False)
        found = sample.pred_instances
        # not scores >= 0: the IoU that scores a mask may be negative
        there = (found.scores != ABSENT) & (found.labels >= 0)
        _, index = torch.where(there, found.scores, -torch.inf).topk(len(there))
        there = there[index]
        dets = torch.cat([get_box_tensor(found.bboxes), found.scores[:, None]], 1)[index]
        results = [torch.where(there[:, None], dets, 0), torch.where(there, found.labels[index], -1)]
        if len(self.output_names) > 2:
            masks = found.masks[index]
            if masks.dtype == torch.bool:
                inside, outside = (torch.tensor(value, dtype=torch.uint8) for value in (255, 0))
                results.append(torch.where(masks & there[:, None, None], inside, outside))
            else:  # of the boxes
                results.append(paste_masks(masks, dets[:, :4], there, *sample.img_shape))
        return tuple(results)


def parts_of(detector: nn.Module) -> dict[str, nn.Module]:
    parts = {name: getattr(detector, name, None) for name in PARTS}
    return {name: part for name, part in parts.items() if part is not None}


def inputs_of(head: nn.Module) -> int:
    """Return how many of (features, data samples) a head has as inputs; 0 if it has others or none.

    0 also for TOODHead, which loops over the images: ``torch.vmap`` calls its ``forward``, too.
    """
    if type(head).forward is nn.Module.forward or isinstance(head, tood_head.TOODHead):
        return 0
    _, *others = inspect.signature(head.forward).parameters
    return {(): 1, ("batch_data_samples",): 2}.get(tuple(others), 0)


def not_traceable(detector: nn.Module) -> str | None:
    """Return the part of a detector whose prediction was not tested, or None."""
    name, parts = type(detector).__name__, parts_of(detector)
    if is_panoptic(detector):
        return f"{name}, whose results are panoptic"
    if hasattr(detector, "roi_head") and not detector.with_rpn:
        return f"{name}, whose proposals are an input"
    for part in parts.values():
        kind = type(part)
        own = [each for each in PREDICTIONS if getattr(kind, each, None) is not getattr(BaseDenseHead, each)]
        if kind.__name__ not in TESTED and own:
            reason = f", which overrides {own[0]}" if issubclass(kind, BaseDenseHead) else ""
            return f"{name} with {kind.__name__}{reason}"
    return None if parts else name


def is_panoptic(detector: nn.Module) -> bool:
    """Return whether a detector predicts more than instances."""
    if isinstance(detector, TwoStagePanopticSegmentor):
        return True
    fusion = getattr(detector, "panoptic_fusion_head", None)
    return fusion is not None and (
        fusion.test_cfg.get("panoptic_on", True) or fusion.test_cfg.get("semantic_on", False)
    )


def note_proposals(
    proposed: list[Tensor], predict: Callable, *args: Any, **kwargs: Any
) -> list[InstanceData]:
    """Call ``rpn_head.predict``. Append which rows are proposals: MMDetection returns only these."""
    (found,) = predict(*args, **kwargs)
    if "scores" in found:
        proposed.append(found.scores >= 0)
    return [found]


def convolve(
    conv2d: Callable,
    input: Tensor,  # [N, groups·c, H, W]
    weight: Tensor,  # [groups·C, c, 1, 1]
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Call ``F.conv2d``, or compute grouped 1 × 1 convolutions as products of matrices.

    With weights that are computed for each image, ``torch.vmap`` multiplies ``groups`` by the number of
    images, but ONNX stores it as a constant.
    """
    if groups == 1 or weight.shape[2:] != (1, 1):
        return conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows = input.unflatten(1, (groups, -1)).flatten(3)
    output = (weight.flatten(1).unflatten(0, (groups, -1)) @ rows).flatten(1, 2)
    output = output.unflatten(2, input.shape[2:])
    return output if bias is None else output + bias[:, None, None]


# with a symbolic size: adaptive maximum pooling has no ONNX operator; padding takes torch.export too long
ONE_SIZE = (BFP, EfficientNet, SwinTransformer)
LIMITS = ("deploy_nms_pre", "max_output_boxes_per_class")
PARTS = ("rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head")
PREDICTIONS = ("predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
SOLO = {"SOLOHead", "SOLOV2Head"}
UNCLIPPED = {"YOLOV3Head", "YOLOXHead"}  # MMDetection does not clip their boxes to the image
WITH_MASKS = {"RTMDetInsSepBNHead", "Mask2FormerHead", "CondInstMaskHead", "BoxInstMaskHead", *SOLO}
TESTED = {
    *("RPNHead", "EmbeddingRPNHead"),
    *("StandardRoIHead", "CascadeRoIHead", "DoubleHeadRoIHead", "DynamicRoIHead", "PISARoIHead"),
    *("MaskScoringRoIHead", "HybridTaskCascadeRoIHead", "SparseRoIHead", "SCNetRoIHead", "GridRoIHead"),
    *("PointRendRoIHead",),
    *("GFLHead", "LDHead", "TOODHead", "RepPointsHead", "FoveaHead", "SABLRetinaHead", "CenterNetHead"),
    *("YOLOV3Head", "YOLOXHead", "CornerHead", "CondInstBboxHead", "BoxInstBboxHead"),
    *WITH_MASKS,
}
