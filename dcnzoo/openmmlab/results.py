"""The detections in a sample of MMDetection."""

from mmengine.structures import BaseDataElement, InstanceData

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.utils.errors import UserError


def instances_of(sample: BaseDataElement) -> InstanceData:
    """Return a sample's ``pred_instances``. Raise UserError if the model detects no objects."""
    if "pred_instances" not in sample:
        raise UserError(f"model: expected a detector, got a model that predicts {', '.join(sample.keys())}")
    return sample.pred_instances


def to_detections(instances: InstanceData, threshold: float) -> Detections:
    """Convert ``pred_instances`` with at least this score."""
    keep = instances.scores >= threshold
    instances = (instances if keep.all() else instances[keep]).cpu()  # indexing copies whole masks
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    masks = Crops.of(instances.masks.numpy().astype(bool, copy=False)) if "masks" in instances else None
    boxes, scores = boxes.float().numpy(), instances.scores.float().numpy()  # bfloat16 in autocast
    return Detections(boxes, scores, instances.labels.numpy(), masks)
