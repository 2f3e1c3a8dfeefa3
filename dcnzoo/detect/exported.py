"""Detectors from exported files. Requires numpy and a runtime, but not torch."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dcnzoo.detect.detections import SCORE_THRESHOLD, Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.outputs import SCORE_THRESHOLD_KEY, rescale_detections
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.session import Session
from dcnzoo.detect.sources import ModelError
from dcnzoo.utils.memory import KeptMemory


class ExportedDetector(BaseDetector):
    """An exported detector for pictures: :func:`dcnzoo.load` without torch::

        from dcnzoo.export import Detector
        detector = Detector("model.onnx")
        result = detector("picture.jpg")  # result.boxes, result.scores, result.labels, result.masks

    Requires numpy, the runtime and, to read files, OpenCV or Pillow. The file contains the image size,
    normalisation and class names, which ``dcnzoo export`` wrote. See
    :meth:`dcnzoo.detect.detector.BaseDetector.__call__` for its calls.

    Args:
        path: the ONNX file, or an OpenVINO IR: an ``.xml`` file next to its ``.bin`` file.
        backend, device, threads, precision: see :class:`Session`.
        score_threshold: default of calls; None: that of the exported detector.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: the runtime is not installed.
        ValueError: the runtime cannot load the file, or dcnzoo did not write it; or the backend is unknown.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        backend: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        score_threshold: float | None = None,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        self.model = Session(path, backend, device, threads, precision)
        if score_threshold is None:
            score_threshold = float(self.model.metadata.get(SCORE_THRESHOLD_KEY, SCORE_THRESHOLD))
        self.device, self.score_threshold = self.model.device, score_threshold
        try:
            self._preprocessing = Preprocessing.from_metadata(self.model.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self.model.require_detections()
        self.classes, self.name = self._preprocessing.classes, Path(path).name
        self._memory = KeptMemory()

    @property
    def _source(self) -> str:
        name, precision = Path(self.model.path).name, self.model.precision
        return f"{name} in {self.model.backend}{f', {precision}' if precision != 'float32' else ''}"

    def prepare(self, picture: np.ndarray, path: str = "") -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
        """Return the input, [1, 3, h, w], its height and width without padding, and the picture."""
        if not self.fits(picture):
            height, width = self.model.shape[2:]
            warnings.warn(
                f"{path or 'image'}: shrunk to the file's input, {height} × {width}; for small objects, "
                "export the detector without a fixed shape",
                stacklevel=2,
            )
        return *self._preprocessing(picture, self.model.shape[2:]), picture

    def fits(self, picture: np.ndarray) -> bool:
        """Whether a picture that the test pipeline resized fits the file's fixed size, if it has one."""
        size = self._preprocessing.padded(self._preprocessing.size(picture.shape[:2]))
        return all(most is None or n <= most for n, most in zip(size, self.model.shape[2:], strict=True))

    def border(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of a resized picture after the pipeline's own padding."""
        return self._preprocessing.padded(size, self.model.shape[2:])

    def _detect(
        self, inputs: Sequence[tuple[np.ndarray, tuple[int, int], np.ndarray]], threshold: float
    ) -> list[Detections]:
        images, sizes, pictures = zip(*inputs, strict=True)
        outputs = self.model(self.model.stack(images), np.array([self.border(size) for size in sizes]))
        if not np.isfinite(outputs["dets"]).all():
            raise ModelError(f"{self.model.path}: expected finite boxes and scores, got NaN or infinity")
        results = []
        for i, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
            values = {name: value[i] for name, value in outputs.items()}
            picture_size, metadata = picture.shape[:2], self.model.metadata
            results.append(rescale_detections(values, size, picture_size, metadata, threshold).with_boxes())
        return results
