"""An exported detector in the place of a model in MMDetection's test loop."""

from __future__ import annotations

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.export.picture import on_picture
from dcnzoo.export.runtime import Session


@MODELS.register_module()
class DeployedDetector(BaseModel):
    """Runs an ONNX file on what the test pipeline loads, and brings the results to the original images.

    Args:
        path, backend, device: of :class:`dcnzoo.export.runtime.Session`.
        data_preprocessor: the model's own.
    """

    def __init__(self, path: str, backend: str, device: str, data_preprocessor: dict) -> None:
        super().__init__(data_preprocessor)
        self.session = Session(path, backend, device)
        if not {"dets", "labels"} <= set(self.session.output_names):
            given = ", ".join(self.session.output_names)
            raise ValueError(f"{path}: expected outputs dets and labels, got {given}: exported without?")

    def forward(
        self, inputs: Tensor, data_samples: list[DetDataSample], mode: str = "predict"
    ) -> list[DetDataSample]:
        sizes = np.array([sample.img_shape[:2] for sample in data_samples])
        outputs = self.session(np.ascontiguousarray(inputs.cpu().numpy()), sizes)
        for n, sample in enumerate(data_samples):
            of_image = {name: value[n] for name, value in outputs.items()}
            size, picture_size = sample.img_shape[:2], sample.ori_shape[:2]
            found = on_picture(of_image, size, picture_size, self.session.metadata)
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(found.boxes),
                scores=torch.from_numpy(found.scores),
                labels=torch.from_numpy(found.labels),
            )
            if found.masks is not None:
                sample.pred_instances.masks = torch.from_numpy(found.masks)
        return data_samples
