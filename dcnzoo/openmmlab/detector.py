"""Detectors of MMDetection for pictures."""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.models.roi_heads import SparseRoIHead
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from dcnzoo.detect.detections import SCORE_THRESHOLD, Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.pictures import read
from dcnzoo.detect.sources import ModelError
from dcnzoo.export.options import ExportOptions
from dcnzoo.export.result import ExportResult
from dcnzoo.openmmlab.calls import call_settings
from dcnzoo.openmmlab.export.preprocessing import require_colour
from dcnzoo.openmmlab.hooks.channels_last import to_channels_last
from dcnzoo.openmmlab.results import instances_of, require_masks_of_image_size, to_detections
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.memory import KeptMemory
from dcnzoo.utils.text import few

Model = Any  # a detector of MMDetection, whose classes have no type annotations


# class of an RoI head → score threshold: R-CNN's softmax gives wrong boxes higher scores than a sigmoid does
THRESHOLDS = {SparseRoIHead: SCORE_THRESHOLD, BaseRoIHead: 0.5}


def default_score_threshold(model: object) -> float:
    """Return the lowest score of a model's detections, where the user chooses none."""
    head = getattr(model, "roi_head", None)
    return next((value for kind, value in THRESHOLDS.items() if isinstance(head, kind)), SCORE_THRESHOLD)


class Features(tuple[Tensor, ...]):
    """Feature maps, [1, C, H, W], and their ``strides``."""

    strides: tuple[int, ...]

    def __new__(cls, maps: Sequence[Tensor], size: Sequence[int]) -> "Features":
        features = super().__new__(cls, maps)
        features.strides = tuple(_stride(size, each.shape[-2:]) for each in maps)
        return features


def _stride(size: Sequence[int], map_size: Sequence[int]) -> int:
    """Return the power of two with ``ceil(size / stride) == map_size``, or else the rounded quotient."""
    for stride in (2**i for i in range(12)):
        if all((n + stride - 1) // stride == m for n, m in zip(size, map_size, strict=True)):
            return stride
    return round(size[0] / map_size[0])


class TorchDetector(BaseDetector):
    """A detector of MMDetection for pictures, which runs the config's test pipeline.

    Args:
        model: from :func:`build`.
        channels_last, precision: see :func:`dcnzoo.load`.
    """

    _finite = False  # whether a batch has shown that the outputs are finite

    def __init__(
        self,
        model: Model,
        score_threshold: float | None = None,
        channels_last: bool = True,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision: expected float32 or bf16, got {precision!r}")
        cfg = getattr(model, "cfg", {})
        steps = get_test_pipeline_cfg(cfg) if "test_dataloader" in cfg else ()
        if any("TestTimeAug" in str(step["type"]) for step in steps):
            raise UserError(
                "test_pipeline: expected one input of a picture, got TestTimeAug: move it to tta_pipeline"
            )
        if score_threshold is None:
            score_threshold = default_score_threshold(model)
        self.model, self.score_threshold = model, score_threshold
        self.classes = tuple(getattr(model, "dataset_meta", {}).get("classes") or ())
        self.channels = (cfg.get("model") or {}).get("backbone", {}).get("in_channels", 3)
        self.device = str(next(model.parameters()).device)
        if channels_last and self.device == "cpu":
            to_channels_last(model)
        self.precision = precision
        if self.device == "cpu":
            self._memory = KeptMemory()

    @property
    def _source(self) -> str:
        name = getattr(self.model.cfg, "filename", None)
        return f"{type(self.model).__name__} {Path(name).stem if name else ''}, {self.precision}"

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the detector to the Hugging Face Hub; see :func:`dcnzoo.openmmlab.hub.push_model`."""
        from dcnzoo.openmmlab.hub import push_model

        return push_model(self.model, repository, **options)

    def features(self, image: Any, *, bgr: bool = False) -> Features:
        """Return the feature maps that the heads read: those of the neck, or of the backbone without one.

        Args:
            image: one picture, as in a call.
            bgr: see :meth:`BaseDetector.__call__`.

        Returns:
            A tuple of maps, [1, C, H, W], the largest first, with the attribute ``strides``: input pixels per
            map pixel. The input is the picture after the test pipeline.
        """
        inputs = self.prepare(read(image, bgr, self.channels))
        model: Model = self.model
        with torch.no_grad(), call_settings(model):
            data = model.data_preprocessor(pseudo_collate([inputs]))
            return Features(model.extract_feat(data["inputs"]), data["inputs"].shape[-2:])

    @functools.cached_property
    def _pipeline(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        steps = copy.deepcopy(get_test_pipeline_cfg(self.model.cfg))
        if self.channels == 3:
            require_colour(steps[0])
        steps[0].type = "mmdet.LoadImageFromNDArray"
        # a program may have selected another scope since the model was built
        with DefaultScope.overwrite_default_scope(self.model.cfg.get("default_scope", "mmdet")):
            return Compose(steps)

    def prepare(self, picture: np.ndarray, path: str = "") -> dict[str, Any]:
        """Run the test pipeline on a picture, [H, W, 3], uint8, BGR; ``path`` is for messages."""
        try:
            return self._pipeline({"img": picture, "img_id": 0})
        except cv2.error as error:  # one side is resized to 0 pixels
            size = f"{picture.shape[1]} × {picture.shape[0]}"
            raise ValueError(f"{path or 'image'}: found {size} pixels: {one_line(error)}") from error

    def export(self, path: str | os.PathLike[str] | ExportOptions, **options: Any) -> ExportResult:
        """Write a file that :func:`dcnzoo.load` and other programs run without OpenMMLab.

        Args:
            path, options: see :class:`dcnzoo.export.options.ExportOptions`, which ``path`` may also be.

        Raises:
            UserError: a file exists, without ``force=True``, or a picture does not.
            ValueError: the detector or an argument is not supported; or fewer than 99 % of the detections
                agree with PyTorch's. An existing file then stays unchanged.
        """
        from dcnzoo.openmmlab.export.export import export_detector

        return export_detector(
            self, path if isinstance(path, ExportOptions) else ExportOptions(path, **options)
        )

    def _detect(self, inputs: Sequence[dict[str, Any]], threshold: float) -> list[Detections]:
        batch = pseudo_collate(inputs)
        return self.results(batch, self.run(batch, threshold), threshold)

    def run(self, batch: dict[str, Any], threshold: float) -> list[BaseDataElement]:
        """Run the model on a batch of a data loader; heads drop lower scores where this changes no other."""
        mixed = self.precision == "bf16"
        kind = torch.device(self.device).type
        autocast = torch.autocast(kind, torch.bfloat16) if mixed else contextlib.nullcontext()
        with torch.no_grad(), autocast, call_settings(self.model, threshold, mixed):
            return self.model.test_step(batch)

    def results(
        self, batch: dict[str, Any], samples: Sequence[BaseDataElement], threshold: float
    ) -> list[Detections]:
        """Return the detections in the samples of :meth:`run`, above a score threshold.

        Raises:
            ModelError: the outputs are not finite, or masks have another size than their picture.
        """
        require_masks_of_image_size(type(self.model).__name__, samples)
        instances = [instances_of(sample) for sample in samples]
        self._require_finite(batch, instances)
        return [to_detections(each, threshold).with_boxes() for each in instances]

    def _require_finite(self, batch: dict[str, Any], instances: Sequence[InstanceData]) -> None:
        """Raise ModelError if the outputs are NaN: the picture would seem to have no objects."""
        model: Model = self.model
        if any(torch.isnan(each.scores).any() for each in instances):
            raise ModelError("model: expected finite scores, got NaN")
        if self._finite:
            return
        if broken := [name for name, each in model.state_dict().items() if each.isnan().any()]:
            raise ModelError(f"model: expected finite weights, got NaN in {few(broken, 2)}")
        if not any(map(len, instances)) and hasattr(model, "extract_feat"):  # NMS drops NaN
            with torch.no_grad(), call_settings(model):
                features = model.extract_feat(model.data_preprocessor(batch)["inputs"])
            if not all(torch.isfinite(each).all() for each in features):
                raise ModelError("model: expected finite feature maps, got NaN or infinity")
        self._finite = True
