"""Check that an exported detector finds the same objects as the original."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcnzoo.detect.session import Session
from dcnzoo.openmmlab.export.detectors import deployable
from dcnzoo.openmmlab.export.wrapper import data_sample


class _LowerIndexFirst(TorchFunctionMode):
    """Sort equal values by index, as ONNX does; without ``stable=True``, torch may return any order.

    A confident RPN scores many proposals exactly 1.0. Their order decides which of them NMS receives.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.sort, Tensor.sort):
            return _sort(*args, **{**kwargs, "stable": True})
        if function in (torch.topk, Tensor.topk):
            return _topk(*args, **kwargs)
        return function(*args, **kwargs)


def _sort(values: Tensor, dim: int = -1, descending: bool = False, stable: bool = True):
    return torch.sort(values, dim=dim, descending=descending, stable=True)


def _topk(values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True):
    values, index = torch.sort(values, dim=dim, descending=largest, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), index.narrow(dim, 0, k)))


@torch.no_grad()
def predict(
    detector: nn.Module, images: Tensor, sizes: list[tuple[int, int]] | None = None
) -> list[InstanceData]:
    """Run MMDetection's own prediction as the reference; boxes are in pixels of the input.

    Equal scores are ranked as in an ONNX graph. ``sizes`` are heights and widths without padding, if the
    images are padded.
    """
    whole = tuple(images.shape[-2:])
    samples = [data_sample(size, whole) for size in sizes or [whole] * len(images)]
    with _LowerIndexFirst():
        return [sample.pred_instances for sample in detector.predict(images, samples, rescale=False)]


@torch.no_grad()
def raw_difference(detector: nn.Module, images: Tensor, session: Session) -> float:
    """Return the largest difference between the head's and a graph's outputs, relative to their maximum."""
    found = torch.utils._pytree.tree_leaves(deployable(detector, skip_postprocess=True)(images))
    expected = [value.numpy() for value in found if isinstance(value, Tensor)]
    outputs = list(session(images.numpy()).values())
    if [value.shape for value in outputs] != [value.shape for value in expected]:
        return np.inf
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))
        for a, b in zip(outputs, expected, strict=True)
    )


@dataclass(frozen=True)
class Agreement:
    """The number of matching detections, and the larger of the two numbers of detections."""

    matched: int
    found: int

    @property
    def holds(self) -> bool:
        """At least 99 % match. Where two boxes overlap by exactly NMS's threshold, rounding decides."""
        return self.found > 0 and self.matched >= 0.99 * self.found

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.matched + other.matched, self.found + other.found)


def compare(outputs: dict[str, np.ndarray], expected: list[InstanceData]) -> Agreement:
    """Compare a graph's outputs for a batch with :func:`predict`, in any order.

    Two detections match if their labels are equal, boxes agree within 1e-3 of the largest coordinate (or
    1e-3 pixels, if larger), scores within 1e-3, and masks overlap with an IoU of at least 0.99.
    """
    total = Agreement(0, 0)
    for n, instances in enumerate(expected):
        there = outputs["labels"][n] >= 0
        dets, labels = outputs["dets"][n][there], outputs["labels"][n][there]
        masks = outputs["masks"][n][there] >= 128 if "masks" in outputs else None
        boxes, scores = instances.bboxes.numpy(), instances.scores.numpy()
        # a head without a limit (YOLOX) may return more boxes than the graph; both sort the best first
        boxes, scores = boxes[: outputs["dets"].shape[1]], scores[: outputs["dets"].shape[1]]
        free, matched = np.ones(len(dets), bool), 0
        for i, (box, score, label) in enumerate(zip(boxes, scores, instances.labels.numpy(), strict=False)):
            near = np.abs(dets[:, :4] - box).max(1, initial=0) <= 1e-3 * max(1.0, np.abs(box).max())
            near &= (np.abs(dets[:, 4] - score) <= 1e-3) & (labels == label) & free
            for j in np.flatnonzero(near):
                if masks is None or _overlap(masks[j], instances.masks[i].numpy()) >= 0.99:
                    free[j], matched = False, matched + 1
                    break
        total += Agreement(matched, max(len(boxes), len(dets)))
    return total


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return 1.0 if union == 0 else (a & b).sum() / union
