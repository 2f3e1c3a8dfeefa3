"""A module that computes what a detector's ``predict`` does, for a batch, with outputs of a fixed size.

MMDetection loops over the images of a batch after the network. Here, ``torch.vmap`` calls its code for one
image, so that the number of images stays dynamic: :meth:`Predictor._predict_by_image` has the steps. What is
traced instead of MMDetection's code is listed in :mod:`dcnzoo.openmmlab.export.rules`.
"""

import inspect
from typing import Any

import torch
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from dcnzoo.detect.backends import BOX_MASKS, CLASS_SCORES, IMG_SHAPE, MASK_LOGITS
from dcnzoo.export.fixed_size import is_used
from dcnzoo.export.onnx import named_errors
from dcnzoo.openmmlab.export import functions, rules
from dcnzoo.openmmlab.export.mixins.features import Head, ImageFeatures
from dcnzoo.openmmlab.export.symbolic_sizes import SymbolicSizes, data_sample, tensor_of


class Predictor(nn.Module):
    """Map images [N, 3, H, W] and the sizes of their pictures to the outputs in ``output_names``.

    ``img_shape`` is [N, 2], int64: height and width without padding; the whole input where it is negative.
    The outputs are described in :mod:`dcnzoo.detect.outputs`.

    Args:
        sized: with the input ``img_shape``. Without, the pictures have no padding.

    Raises:
        ValueError: the detector is not supported.
    """

    input_names: tuple[str, ...] = ("input", IMG_SHAPE)
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
        self.detector = rules.copy_for_tracing(detector)
        self.one_size = rules.has_one_size(detector)
        self.mask_threshold = None  # of probabilities
        self.mask_fields: tuple[str, ...] = ()  # of MMDetection's results
        if masks := rules.masks_of(detector):
            self.mask_fields = (MASK_LOGITS, CLASS_SCORES) if masks == MASK_LOGITS else ("masks",)
            self.output_names += self.mask_fields if masks == MASK_LOGITS else (masks,)
        if masks == BOX_MASKS:
            self.mask_threshold = float(detector.roi_head.test_cfg.get("mask_thr_binary", 0.5))
            if self.mask_threshold < 0:
                raise ValueError(f"test_cfg: mask_thr_binary: expected at least 0, got {self.mask_threshold}")

    def forward(self, images: Tensor, img_shape: Tensor | None = None) -> tuple[Tensor, ...]:
        padded = images.shape[-2:]
        sizes = tensor_of(padded, dtype=torch.long).expand(images.shape[0], 2)
        if img_shape is not None:
            img_shape = img_shape.expand_as(sizes)  # one row is for all images
            sizes = torch.where(img_shape >= 0, img_shape, sizes)
        is_transformer = isinstance(self.detector, DetectionTransformer)
        predict = self._predict_by_batch if is_transformer else self._predict_by_image
        with functions.replaced(), SymbolicSizes(), named_errors(self.detector, "detector"):
            return torch.vmap(sorted_outputs)(*predict(images, sizes))

    def _predict_by_batch(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Call the ``predict`` of a detection transformer: its code is for a batch."""
        sample = data_sample(sizes.unbind(1), images.shape[-2:])
        return self.detector.predict(images, [sample], rescale=False)

    def _predict_by_image(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Call the network and its heads for the batch, then ``predict`` for each image with their outputs.

        An RoI head predicts masks after that, for all images: only then, the number of detections is known.
        """
        padded, detector = images.shape[-2:], self.detector
        maps = detector.extract_feat(images)
        inputs = maps, [data_sample(padded, padded)]
        heads = [part for part in rules.parts_of(detector).values() if isinstance(part, Head)]
        outputs = {head._dcnzoo_name: head(*inputs[: head._dcnzoo_inputs]) for head in heads}

        def predict(size: Tensor, of_image: tuple) -> tuple[tuple[Tensor, ...], dict]:
            features = ImageFeatures(*tree_map_only(Tensor, lambda tensor: tensor[None], of_image))
            (sample,) = detector.predict(features, [data_sample(size, padded)], rescale=False)
            results = sample.pred_instances
            mask_inputs = results.get("mask_inputs", {})
            masks = [] if mask_inputs else [results[name] for name in self.mask_fields]
            return (get_box_tensor(results.bboxes), results.scores, results.labels, *masks), mask_inputs

        of_batch = maps, outputs
        axes = tree_map(lambda value: 0 if isinstance(value, Tensor) else None, of_batch)
        # torch.vmap calls the function once, with tensors that hold the values of all images
        rows, mask_inputs = torch.vmap(predict, in_dims=(0, axes))(sizes, of_batch)
        if not mask_inputs:
            return rows
        mask_inputs = tree_map(lambda tensor: tensor.flatten(0, 1), mask_inputs)
        boxes, scores, labels = rows
        scores, masks = detector.roi_head.predict_masks(boxes, scores, labels, mask_inputs)
        return boxes, scores, labels, masks


class RawHead(nn.Module):
    """The head's outputs, level by level, without post-processing.

    They are called ``scores_0``, ``scores_1``, …, ``boxes_0``, … and, for what multiplies the scores,
    ``factors_0``, …: logits and deltas as the head's ``predict_by_feat`` takes them. Others have the names of
    its arguments. ``strides`` are the input's pixels per pixel of each level.
    """

    kinds = dict(cls_scores="scores", bbox_preds="boxes", score_factors="factors", objectnesses="factors")

    input_names = ("input",)

    def __init__(self, detector: Any) -> None:
        super().__init__()
        transformer = isinstance(detector, DetectionTransformer)
        if getattr(detector, "bbox_head", None) is None or hasattr(detector, "roi_head") or transformer:
            name = type(detector).__name__
            raise ValueError(f"raw_outputs: expected False for {name}, which is not a single-stage detector")
        self.detector = self.copy_of(detector)
        self.one_size = rules.has_one_size(detector)

    @staticmethod
    def copy_of(detector: Any) -> Any:
        """Return the copy that is called."""
        return rules.copied(detector)

    def forward(self, images: Tensor) -> Any:
        return self.detector.bbox_head(self.detector.extract_feat(images))

    def names(self, images: Tensor) -> list[str]:
        """Return the names of the outputs for images."""
        with torch.no_grad():
            outputs = self(images)
        arguments = inspect.signature(self.detector.bbox_head.predict_by_feat).parameters
        levels = (part if isinstance(part, list | tuple) else [part] for part in outputs)
        return [
            f"{self.kinds.get(name, name)}_{i}"
            for name, parts in zip(arguments, levels, strict=False)
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


class TracedRawHead(RawHead):
    """``RawHead`` for :func:`dcnzoo.export.export_onnx`. Other compilers have the layers that it replaces."""

    @staticmethod
    def copy_of(detector: Any) -> Any:
        return rules.copy_for_tracing(detector, layers_only=True)

    def forward(self, images: Tensor) -> Any:
        with functions.replaced(), SymbolicSizes():
            return super().forward(images)


def sorted_outputs(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of :class:`Predictor` for the rows of one image, which come in any order."""
    used = is_used(scores)
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
