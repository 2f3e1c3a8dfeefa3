"""``predict`` for one image, whose features and outputs of heads were computed with those of the batch.

:mod:`dcnzoo.openmmlab.export.predict` makes the :class:`ImageFeatures` and gives them to ``predict`` in
place of the image; the mixins here return what they hold.
"""

from collections.abc import Iterable
from typing import Any

from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn


class ImageFeatures(tuple):
    """The feature maps of an image. ``outputs``: those of heads for them, by the names of the heads."""

    outputs: dict[str, Any]

    def __new__(cls, maps: Iterable[Tensor], outputs: dict[str, Any]) -> "ImageFeatures":
        features = super().__new__(cls, maps)
        features.outputs = outputs
        return features


class Head(nn.Module):
    _dcnzoo_name: str  # in the detector
    _dcnzoo_inputs: int  # of forward: the features, or also data samples

    def forward(self, x: Any, *others: Any) -> Any:
        return x.outputs[self._dcnzoo_name] if isinstance(x, ImageFeatures) else super().forward(x, *others)


class Detector(BaseDetector):
    def extract_feat(self, batch_inputs: Any) -> Any:
        return batch_inputs if isinstance(batch_inputs, ImageFeatures) else super().extract_feat(batch_inputs)
