"""A module that computes what a detector's ``predict`` does, for a batch, with outputs of a fixed size.

MMDetection loops over the images of a batch after the network. Here, ``torch.vmap`` calls its code for one
image, so that the number of images stays dynamic. Masks of boxes are predicted at the end, for all images at
once: only then it is known which of the rows hold a detection.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import layers
from mmdet.models.dense_heads import tood_head
from mmdet.models.detectors import MaskFormer
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dcnzoo.compat.patches import Changes
from dcnzoo.detect.backends import BOX_MASKS, CLASS_SCORES, MASK_LOGITS
from dcnzoo.export.fixed_size import ABSENT
from dcnzoo.export.onnx import named_errors
from dcnzoo.openmmlab.export import rules
from dcnzoo.openmmlab.export.order import OrderByLogits
from dcnzoo.openmmlab.export.replacements.boxes import keep_best
from dcnzoo.openmmlab.export.replacements.layers import convolve
from dcnzoo.openmmlab.export.symbolic_sizes import (
    SymbolicSizes,
    data_sample,
    number_of_rows,
    tensor_of,
)

Rows = tuple[Tensor, Tensor, Tensor]  # boxes [N, K, 4], scores and labels [N, K], with unused ones


class Predictor(nn.Module):
    """Map images [N, 3, H, W] and the sizes of their pictures to the outputs in ``output_names``.

    ``img_shape`` is [N, 2], int64: height and width without padding; the whole input where it is negative.
    ``dets`` is [N, K, 5]: (x1, y1, x2, y2, score) in pixels of the input, best first. ``labels`` is [N, K];
    -1 marks unused rows. A detector with masks has one more output: ``masks`` [N, K, H, W], uint8, is the
    probability times 255; in its place, ``box_masks`` [N, K, h, w], float32, are probabilities in the pixels
    of the mask head, which cover the box. Of Mask2Former, ``mask_logits`` [N, K, h, w] and ``class_scores``
    [N, K] are what its boxes, scores and masks in a picture of another size are computed from.

    Args:
        sized: with the input ``img_shape``. Without, the pictures have no padding.

    Raises:
        ValueError: the detector is not supported.
    """

    input_names: tuple[str, ...] = ("input", "img_shape")
    output_names: tuple[str, ...] = ("dets", "labels")

    def __init__(self, detector: Any, sized: bool = True) -> None:
        super().__init__()
        if not sized:
            self.input_names = ("input",)
        if reason := rules.reason_to_refuse_detector(detector):
            raise ValueError(
                f"detector: expected one that can be exported: {reason}; raw_outputs=True exports the "
                "outputs of a single-stage head, dcnzoo.export.export_onnx any module"
            )
        self.detector = detector
        table = [(part, rule) for part in detector.modules() if (rule := rules.rule_for(type(part)))]
        parts = rules.parts_of(detector).values()
        if any(rule.has_masks and getattr(part, "with_mask", True) for part, rule in table if part in parts):
            self.output_names = ("dets", "labels", "masks")
        self.one_size = any(rule.one_size for _, rule in table)
        self.mask_threshold = None  # of probabilities
        if "masks" in self.output_names and hasattr(detector, "roi_head"):
            self.mask_threshold = float(detector.roi_head.test_cfg.get("mask_thr_binary", 0.5))
            if self.mask_threshold < 0:
                raise ValueError(f"test_cfg: mask_thr_binary: expected at least 0, got {self.mask_threshold}")
            self.output_names = ("dets", "labels", BOX_MASKS)
        elif isinstance(detector, MaskFormer):
            self.output_names = ("dets", "labels", MASK_LOGITS, CLASS_SCORES)
        self._masks: DeferredMasks | None = None

    def forward(self, images: Tensor, img_shape: Tensor | None = None) -> tuple[Tensor, ...]:
        padded = images.shape[-2:]
        sizes = tensor_of(padded, dtype=torch.long).expand(images.shape[0], 2)
        if img_shape is not None:
            sizes = torch.where(img_shape >= 0, img_shape, sizes)
        with Changes() as changes, SymbolicSizes():
            rules.apply(changes)
            with named_errors(self.detector, "detector"):
                outputs: tuple[Tensor, ...]
                if isinstance(self.detector, DetectionTransformer):
                    outputs = self._predict_batch(changes, images, sizes)
                else:
                    outputs = self._predict_images(images, sizes)
            return torch.vmap(rank)(*outputs)

    def _predict_batch(self, changes: Changes, images: Tensor, sizes: Tensor) -> Rows:
        """Call the ``predict`` of a detection transformer: its code is for a batch."""
        detector, sample = self.detector, data_sample(sizes.unbind(1), images.shape[-2:])
        changes.set(detector, "add_pred_to_datasample", lambda _, results: results)
        with OrderByLogits():
            return detector.predict(images, [sample], rescale=False)

    def _predict_images(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        padded = images.shape[-2:]
        heads = [head for head in rules.parts_of(self.detector).values() if inputs_of(head)]
        features = self.detector.extract_feat(images)
        arguments = features, [data_sample(padded, padded)]
        outputs = [head(*arguments[: inputs_of(head)]) for head in heads]
        leaves, structure = tree_flatten((features, outputs))

        def predict(size: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            parts = iter(tensors)  # of one image; some outputs of heads are None
            image = [next(parts)[None] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            features, outputs = tree_unflatten(image, structure)
            sample = data_sample(size, padded)
            return self._predict_image(features, dict(zip(heads, outputs, strict=True)), sample)

        self._masks = None
        rows = torch.vmap(predict)(sizes, *(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        return rows if self._masks is None else self._masks.predict(*rows)

    def _predict_image(
        self, features: tuple[Tensor, ...], outputs: dict[nn.Module, Any], sample: DetDataSample
    ) -> tuple[Tensor, ...]:
        """Call the detector's ``predict`` with the features and outputs of heads of one image."""
        detector = self.detector
        proposed: list = []
        with Changes() as changes, OrderByLogits():
            changes.set(detector, "extract_feat", lambda _: features)
            for head, output in outputs.items():
                changes.set(head, "forward", lambda *_, output=output: output)
            rules.replace_everywhere(changes, layers.multiclass_nms, partial(keep_best, proposed=proposed))
            if hasattr(detector, "roi_head"):
                changes.wrap(detector.rpn_head, "predict", partial(note_proposals, proposed))
                if detector.roi_head.with_mask:
                    changes.wrap(detector.roi_head, "predict_mask", self._defer)
            changes.wrap(F, "conv2d", convolve)
            (sample,) = detector.predict(None, [sample], rescale=False)
        results = sample.pred_instances
        rows = get_box_tensor(results.bboxes), results.scores, results.labels
        if self._masks is not None:
            return *rows, *self._masks.tensors
        if MASK_LOGITS in self.output_names:
            return *rows, results.logits, results.class_scores
        return (*rows, results.masks) if len(self.output_names) > 2 else rows

    def _defer(self, predict_mask: Callable, *args: Any, **kwargs: Any) -> list[InstanceData]:
        """Wrap ``roi_head.predict_mask``."""
        arguments = inspect.signature(predict_mask).bind(*args, **kwargs).arguments
        results = arguments.pop("results_list")
        if set(results[0].keys()) - {"bboxes", "scores", "labels"}:  # all rows are present in QueryInst
            return predict_mask(*args, **kwargs)
        self._masks = DeferredMasks(predict_mask, arguments)
        return results


class DeferredMasks:
    """A call of ``roi_head.predict_mask`` that is made later, for the detections of all images."""

    def __init__(self, predict_mask: Callable, arguments: dict[str, Any]) -> None:
        del arguments["batch_img_metas"]
        self._predict_mask = predict_mask
        self._leaves, self._structure = tree_flatten(arguments)

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    def predict(self, boxes: Tensor, scores: Tensor, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with their masks. ``tensors``: those of the call, with the images as first axis."""
        parts = iter(tensors)
        leaves = [next(parts).flatten(0, 1) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        arguments = tree_unflatten(leaves, self._structure)
        index = is_used(scores, labels).nonzero()
        # the first row in any case: with no row, MMDetection returns early
        image, row = torch.cat([torch.zeros_like(boxes[0, :1, :2], dtype=torch.long), index]).unbind(1)
        present = SimpleNamespace(
            bboxes=boxes[image, row], scores=scores[image, row], labels=labels[image, row]
        )
        meta = data_sample((1, 1), (1, 1)).metainfo  # masks are pasted later, with the size of the input

        def rois(boxes: Sequence[Tensor]) -> Tensor:
            return torch.cat([image[:, None].to(boxes[0]), boxes[0]], 1)

        with Changes() as changes:
            rules.replace_everywhere(changes, bbox2roi, rois)
            for name, module in list(sys.modules.items()):
                if name.startswith("mmdet.models.roi_heads"):
                    changes.set(module, "len", number_of_rows)
            (results,) = self._predict_mask(**arguments, batch_img_metas=[meta], results_list=[present])
        # as rows of a matrix: MNN writes wrong values where ScatterND writes whole masks
        number, height, width = results.masks.shape
        place = image * scores.shape[1] + row
        rows = results.masks.new_zeros(scores.shape[0] * scores.shape[1], height * width)
        rows = rows.index_put((place,), results.masks.reshape(number, height * width))
        masks = rows.unflatten(0, (-1, scores.shape[1])).unflatten(2, (height, width))
        return boxes, scores.index_put((image, row), results.scores), labels, masks


class RawHead(nn.Module):
    """The head's outputs, level by level, without post-processing.

    They are called ``scores_0``, ``scores_1``, …, ``boxes_0``, … and, for what multiplies the scores,
    ``factors_0``, …: logits and deltas as the head's ``predict_by_feat`` takes them. ``strides`` are the
    input's pixels per pixel of each level.
    """

    input_names = ("input",)
    one_size = False

    def __init__(self, detector: Any) -> None:
        super().__init__()
        if not hasattr(detector, "bbox_head") or hasattr(detector, "roi_head"):
            name = type(detector).__name__
            raise ValueError(f"raw_outputs: expected False for {name}, which is not a single-stage detector")
        self.detector = detector

    def forward(self, images: Tensor) -> Any:
        return self.detector.bbox_head(self.detector.extract_feat(images))

    def names(self, images: Tensor) -> list[str]:
        """Return the names of the outputs for images."""
        with torch.no_grad():
            outputs = self(images)
        kinds = ("scores", "boxes", "factors", *(f"other_{i}" for i in range(3, len(outputs))))
        levels = (part if isinstance(part, list | tuple) else [part] for part in outputs)
        return [
            f"{kind}_{i}"
            for kind, parts in zip(kinds, levels, strict=False)
            for i, part in enumerate(parts)
            if isinstance(part, Tensor)
        ]

    @property
    def strides(self) -> list[int]:
        generator = getattr(self.detector.bbox_head, "prior_generator", None)
        return [
            max(stride) if isinstance(stride, tuple) else stride
            for stride in getattr(generator, "strides", ())
        ]


def is_used(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether rows hold a detection. Not by ``scores >= 0``: the IoU that scores a mask may be negative."""
    return (scores != ABSENT) & (labels >= 0)


def rank(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of :class:`Predictor` for the rows of one image."""
    used = is_used(scores, labels)
    _, index = torch.where(used, scores, -torch.inf).topk(scores.shape[0])
    used = used[index]
    dets = torch.cat([boxes, scores[:, None]], 1)[index]
    results = [torch.where(used[:, None], dets, 0), torch.where(used, labels[index], -1)]
    for mask in masks:
        mask = mask[index]
        if mask.dtype == torch.bool:
            inside, outside = (torch.tensor(value, dtype=torch.uint8) for value in (255, 0))
            results.append(torch.where(mask & used[:, None, None], inside, outside))
            continue
        results.append(torch.where(used.view(-1, *[1] * (mask.dim() - 1)), mask, 0))
    return tuple(results)


def inputs_of(head: nn.Module) -> int:
    """Return how many of (features, data samples) a head has as inputs; 0 if it has others or none.

    0 also for TOODHead, which loops over the images: ``torch.vmap`` calls its ``forward``, too.
    """
    if type(head).forward is nn.Module.forward or isinstance(head, tood_head.TOODHead):
        return 0
    _, *others = inspect.signature(head.forward).parameters
    return {(): 1, ("batch_data_samples",): 2}.get(tuple(others), 0)


def note_proposals(
    proposed: list[Tensor], predict: Callable, *args: Any, **kwargs: Any
) -> list[InstanceData]:
    """Call ``rpn_head.predict``. Append which rows are proposals: MMDetection returns only these."""
    (results,) = predict(*args, **kwargs)
    if "scores" in results:
        proposed.append(results.scores >= 0)
    return [results]
