"""A module that computes what a detector's ``predict`` does, for a batch, with outputs of a fixed size.

MMDetection loops over the images of a batch after the network. Here, ``torch.vmap`` calls its code for one
image, so that the number of images stays dynamic. Masks of boxes are predicted at the end, for all images at
once: only then it is known which of the rows hold a detection.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from dcnzoo.openmmlab.export.replacements.boxes import keep_best
from dcnzoo.openmmlab.export.replacements.layers import convolve
from dcnzoo.openmmlab.export.symbolic_sizes import SymbolicSizes, data_sample, number_of_rows, tensor_of


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
        self.one_size = any(rule.one_size for _, rule in table)
        self.mask_threshold = None  # of probabilities
        heads = rules.parts_of(detector).values()
        with_masks = [part for part, rule in table if rule.has_masks and getattr(part, "with_mask", True)]
        has_masks = any(part in heads for part in with_masks)
        if isinstance(detector, MaskFormer):
            self.output_names = ("dets", "labels", MASK_LOGITS, CLASS_SCORES)
        elif has_masks and hasattr(detector, "roi_head"):
            self.output_names = ("dets", "labels", BOX_MASKS)
            self.mask_threshold = float(detector.roi_head.test_cfg.get("mask_thr_binary", 0.5))
        elif has_masks:
            self.output_names = ("dets", "labels", "masks")
        if self.mask_threshold is not None and self.mask_threshold < 0:
            raise ValueError(f"test_cfg: mask_thr_binary: expected at least 0, got {self.mask_threshold}")

    def forward(self, images: Tensor, img_shape: Tensor | None = None) -> tuple[Tensor, ...]:
        padded = images.shape[-2:]
        sizes = tensor_of(padded, dtype=torch.long).expand(images.shape[0], 2)
        if img_shape is not None:
            sizes = torch.where(img_shape >= 0, img_shape, sizes)
        with Changes() as changes, SymbolicSizes(), named_errors(self.detector, "detector"):
            rules.apply(changes)
            is_transformer = isinstance(self.detector, DetectionTransformer)
            predict = self._predict_batch if is_transformer else self._predict_images
            return torch.vmap(best_first)(*predict(images, sizes))

    def _predict_batch(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Call the ``predict`` of a detection transformer: its code is for a batch."""
        sample = data_sample(sizes.unbind(1), images.shape[-2:])
        with Changes() as changes:
            changes.set(self.detector, "add_pred_to_datasample", lambda _, results: results)
            return self.detector.predict(images, [sample], rescale=False)

    def _predict_images(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Call the network and its heads for the batch, and the rest of ``predict`` for each image."""
        padded = images.shape[-2:]
        heads = [head for head in rules.parts_of(self.detector).values() if inputs_of(head)]
        features = self.detector.extract_feat(images)
        arguments = features, [data_sample(padded, padded)]
        outputs = [head(*arguments[: inputs_of(head)]) for head in heads]
        tensors, rebuild = tensors_of((features, outputs))
        deferred: list[DeferredMasks] = []

        # torch.vmap runs this once, with tensors of all images: a detector with boxes' masks defers one call
        def predict(size: Tensor, *of_image: Tensor) -> tuple[Tensor, ...]:
            features, outputs = rebuild([tensor[None] for tensor in of_image])
            of_heads = dict(zip(heads, outputs, strict=True))
            return self._predict_image(features, of_heads, data_sample(size, padded), deferred)

        rows = torch.vmap(predict)(sizes, *tensors)
        return deferred[0].predict(*rows) if deferred else rows

    def _predict_image(
        self,
        features: tuple[Tensor, ...],
        outputs: dict[nn.Module, Any],  # of heads
        sample: DetDataSample,
        deferred: list["DeferredMasks"],
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores and labels of an image, and its masks or what they are predicted from."""
        detector = self.detector
        proposed: list[Tensor] = []
        with Changes() as changes:
            changes.set(detector, "extract_feat", lambda _: features)
            for head, output in outputs.items():
                changes.set(head, "forward", lambda *_, output=output: output)
            rules.replace_everywhere(changes, layers.multiclass_nms, partial(keep_best, proposed=proposed))
            if hasattr(detector, "roi_head"):
                changes.wrap(detector.rpn_head, "predict", partial(note_proposals, proposed))
                if detector.roi_head.with_mask:
                    changes.wrap(detector.roi_head, "predict_mask", partial(defer_masks, deferred))
            changes.wrap(F, "conv2d", convolve)
            # no images: the features and the outputs of the heads are there
            (sample,) = detector.predict(None, [sample], rescale=False)
        results = sample.pred_instances
        rows = get_box_tensor(results.bboxes), results.scores, results.labels
        if deferred:
            return *rows, *deferred[0].tensors
        if MASK_LOGITS in self.output_names:
            return *rows, results.logits, results.class_scores
        return (*rows, results.masks) if len(self.output_names) > 2 else rows


def tensors_of(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Return the tensors of nested lists and dictionaries, and a function that exchanges them for others."""
    leaves, structure = tree_flatten(tree)

    def rebuild(tensors: Sequence[Tensor]) -> Any:
        parts = iter(tensors)
        values = [next(parts) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tree_unflatten(values, structure)

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], rebuild


def defer_masks(
    deferred: list["DeferredMasks"], predict_mask: Callable, *args: Any, **kwargs: Any
) -> list[InstanceData]:
    """Wrap ``roi_head.predict_mask``: append the call, which is made for all images later."""
    arguments = inspect.signature(predict_mask).bind(*args, **kwargs).arguments
    results = arguments.pop("results_list")
    if set(results[0].keys()) - {"bboxes", "scores", "labels"}:  # all rows are present in QueryInst
        return predict_mask(*args, **kwargs)
    del arguments["batch_img_metas"]
    deferred.append(DeferredMasks(predict_mask, *tensors_of(arguments)))
    return results


@dataclass(frozen=True)
class DeferredMasks:
    """A call of ``roi_head.predict_mask`` that is made later, for the detections of all images.

    Attributes:
        tensors: in the arguments of the call, of one image.
        rebuild: returns the arguments with other tensors.
    """

    predict_mask: Callable
    tensors: list[Tensor]
    rebuild: Callable

    def predict(self, boxes: Tensor, scores: Tensor, labels: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with their masks. ``tensors``: those of the call, with the images as first axis."""
        arguments = self.rebuild([tensor.flatten(0, 1) for tensor in tensors])
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
            (results,) = self.predict_mask(**arguments, batch_img_metas=[meta], results_list=[present])
        # as rows of a matrix: MNN writes wrong values where ScatterND writes whole masks
        number, height, width = results.masks.shape
        number_of_row = image * scores.shape[1] + row
        rows = results.masks.new_zeros(scores.shape[0] * scores.shape[1], height * width)
        rows = rows.index_put((number_of_row,), results.masks.reshape(number, height * width))
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
        transformer = isinstance(detector, DetectionTransformer)
        if not hasattr(detector, "bbox_head") or hasattr(detector, "roi_head") or transformer:
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


def best_first(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of :class:`Predictor` for the rows of one image, which come in any order."""
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
