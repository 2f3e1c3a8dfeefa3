"""An exported detector as a model for MMDetection's test loop.

``dcnzoo test`` of a file builds it by its name. :mod:`dcnzoo.detect.session` runs the file.
"""

import dataclasses

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.outputs import rescale_detections
from dcnzoo.detect.preprocessing import KEY, Preprocessing
from dcnzoo.detect.session import Session
from dcnzoo.openmmlab.classes import require_order
from dcnzoo.utils.errors import UserError, one_line


@MODELS.register_module()
class DeployedDetector(BaseModel):
    """Runs an ONNX file on batches of the test pipeline and rescales the results to the original images.

    Args:
        path, backend, device: see :class:`dcnzoo.detect.session.Session`.
        data_preprocessor: the config of the model's data preprocessor.
        loader: settings of the data loader, whose classes must have the order of the file's.
    """

    def __init__(
        self, path: str, backend: str | None, device: str, data_preprocessor: dict, loader: dict | None = None
    ) -> None:
        super().__init__(data_preprocessor)
        self.session = Session(path, backend, device)
        self.session.require_detections()
        if KEY in self.session.metadata:
            names = Preprocessing.from_metadata(self.session.metadata).classes
            require_order(loader, names, path)

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample], mode: str = "predict"
    ) -> list[DetDataSample]:
        sizes = np.array([sample.img_shape[:2] for sample in data_samples])
        try:
            outputs = self.session(np.ascontiguousarray(inputs.cpu().numpy()), sizes)
        except ValueError as error:  # an image does not fit the graph's input size
            raise UserError(one_line(error)) from error
        for n, sample in enumerate(data_samples):
            of_image = {name: value[n] for name, value in outputs.items()}
            if "border" in sample.metainfo:
                result = without_border(of_image, sample.border)
            else:
                border, (height, width) = sample.img_shape[:2], sample.ori_shape[:2]
                across, down = sample.get("scale_factor", (border[1] / width, border[0] / height))
                size = (round(height * down), round(width * across))  # without the pipeline's Pad
                result = rescale_detections(of_image, size, (height, width), self.session.metadata)
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(result.boxes),
                scores=torch.from_numpy(result.scores),
                labels=torch.from_numpy(result.labels),
            )
            if result.masks is not None:
                sample.pred_instances.masks = torch.from_numpy(result.masks)
        return data_samples


def without_border(outputs: dict[str, np.ndarray], border: tuple[float, float, float, float]) -> Detections:
    """Convert one image's outputs for CornerNet's test pipeline, which pads all sides and does not resize."""
    result, (top, _, left, _) = rescale_detections(outputs, (1, 1), (1, 1), {}), border
    boxes = (result.boxes - np.array([left, top, left, top], np.float32)).clip(0)
    inside = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    return dataclasses.replace(result, boxes=boxes)[inside]
