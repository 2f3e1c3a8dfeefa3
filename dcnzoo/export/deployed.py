"""An exported detector in the place of a model in MMDetection's test loop."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.errors import UserError, one_line
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
        try:
            outputs = self.session(np.ascontiguousarray(inputs.cpu().numpy()), sizes)
        except ValueError as error:  # images of the data set that do not fit into the graph
            raise UserError(one_line(error)) from error
        for n, sample in enumerate(data_samples):
            sample.pred_instances = on_original_image(
                {name: value[n] for name, value in outputs.items()}, sample.metainfo
            )
        return data_samples


def on_original_image(outputs: dict[str, np.ndarray], meta: dict) -> InstanceData:
    """One image's outputs, which are in pixels of the network's input, in pixels of its file."""
    there = outputs["labels"] >= 0
    height, width = meta["img_shape"][:2]  # without what padding adds
    dets = outputs["dets"][there]
    if "border" in meta:  # CornerNet's test pipeline pads on all sides and does not resize
        top, _, left, _ = meta["border"]
        boxes = (dets[:, :4] - (left, top, left, top)).clip(0)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        dets, boxes, there[there] = dets[inside], boxes[inside], inside
    else:
        boxes = dets[:, :4].clip(0, (width, height, width, height)) / np.tile(meta["scale_factor"], 2)
    found = InstanceData(
        bboxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=torch.from_numpy(dets[:, 4]),
        labels=torch.from_numpy(outputs["labels"][there]),
    )
    if "masks" in outputs:
        rows, columns = meta["ori_shape"][:2]
        masks = np.zeros((len(dets), rows, columns), bool)
        for mask, soft in zip(masks, outputs["masks"][there], strict=True):
            # resized as a probability: a mask cut off at the network's size would lose its border's place
            mask[:] = cv2.resize(soft[:height, :width], (columns, rows)) >= 128
        found.masks = torch.from_numpy(masks)
    return found
