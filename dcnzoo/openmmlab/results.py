"""The detections in a sample of MMDetection."""

from collections.abc import Sequence

import numpy as np
from mmengine.structures import BaseDataElement, InstanceData

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.sources import ModelError
from dcnzoo.utils.errors import UserError


def instances_of(sample: BaseDataElement) -> InstanceData:
    """Return a sample's ``pred_instances``. Raise UserError if the model detects no objects."""
    if "pred_instances" not in sample:
        raise UserError(f"model: expected a detector, got a model that predicts {', '.join(sample.keys())}")
    return sample.pred_instances


def require_masks_of_image_size(owner: str, samples: Sequence[BaseDataElement | dict]) -> None:
    """Raise ModelError if the masks in a sample have another height or width than its picture.

    Without this check, masks of a wrong size would be compared or drawn without a warning.

    Args:
        owner: the detector or metric that the error names.
        samples: results of ``test_step``. Samples without masks or ``ori_shape`` are not checked.
    """
    for sample in samples:
        instances, size = sample.get("pred_instances"), sample.get("ori_shape")
        masks = instances.get("masks") if instances is not None else None
        shape: tuple[int, ...] = getattr(masks, "shape", ())  # [N, H, W]; none for lists of compressed masks
        if len(shape) == 3 and shape[0] and size is not None and tuple(shape[1:]) != tuple(size[:2]):
            (height, width), (expected_height, expected_width) = shape[1:], size[:2]
            expected = f"{expected_width} × {expected_height} pixels, as the picture"
            raise ModelError(f"{owner}: masks: expected {expected}, got {width} × {height}")


def to_detections(instances: InstanceData, threshold: float) -> Detections:
    """Convert the objects in ``pred_instances`` whose score is at least the threshold, best first."""
    keep = instances.scores >= threshold
    instances = (instances if keep.all() else instances[keep]).cpu()  # indexing copies whole masks
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    masks = Crops.of(instances.masks.numpy().astype(bool, copy=False)) if "masks" in instances else None
    boxes, scores = boxes.float().numpy(), instances.scores.float().numpy()  # bfloat16 in autocast
    order = np.argsort(-scores, kind="stable")  # Mask2Former's are in no order
    return Detections(boxes, scores, instances.labels.numpy(), masks)[order]
