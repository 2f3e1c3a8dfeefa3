"""A trained detector on images of its test set, in the form the figures take. Needs mmdet."""

import contextlib
import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

import dcnzoo.models  # noqa: F401  registers what the config names
from dcnzoo.visualization.plots import Instances
from dcnzoo.visualization.sampling import SamplingField, record_sampling


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One image of the test set.

    Attributes:
        image: [H, W, 3], uint8, RGB, as the model saw it.
        truth: what is annotated; empty if the test pipeline loads no annotations.
        detections: what the model found.
        fields: where its deformable layers sampled, in forward order.
    """

    image: np.ndarray
    truth: Instances
    detections: Instances
    fields: list[SamplingField]


class Detector:
    """A model with its weights and its test set.

    Images must not be resized by more than padding adds: masks and boxes are drawn on what the
    model saw.
    """

    def __init__(self, cfg: Config, checkpoint: str | Path) -> None:
        init_default_scope(cfg.get("default_scope", "mmdet"))
        self.model = MODELS.build(cfg.model).eval()
        load_checkpoint(self.model, str(checkpoint), map_location="cpu", logger="silent")
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools narrates
            self.dataset = DATASETS.build(cfg.test_dataloader.dataset)

    def predict(self, index: int) -> Prediction:
        """Run the model on image ``index`` of the test set."""
        item = self.dataset[index]
        image = item["inputs"].numpy().transpose(1, 2, 0)[..., ::-1].copy()
        truth = item["data_samples"].get("gt_instances")
        with torch.no_grad(), record_sampling(self.model) as fields:
            found = self.model.test_step(pseudo_collate([item]))[0].pred_instances
        return Prediction(image, _instances(truth), _instances(found), fields)


def _instances(data) -> Instances:
    if data is None:
        return Instances(np.zeros((0, 4)), np.zeros(0, int))
    boxes = data.bboxes.tensor if hasattr(data.bboxes, "tensor") else data.bboxes
    masks = data.get("masks")
    if masks is not None:
        masks = masks.to_ndarray() if hasattr(masks, "to_ndarray") else masks.numpy()
        masks = masks.astype(bool)
    scores = data.scores.numpy() if "scores" in data else None
    return Instances(boxes.numpy(), data.labels.numpy(), masks, scores)
