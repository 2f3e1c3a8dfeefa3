"""The interface of all detectors, with PyTorch or with an exported file. Requires only numpy."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcnzoo.export.picture import Detections, read
from dcnzoo.utils.files import picture_files

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


class BaseDetector:
    """A detector for pictures: :func:`dcnzoo.load` returns one.

    Attributes:
        model: the ``nn.Module``, or the :class:`~dcnzoo.export.runtime.Session` of an exported file.
        classes: the names of the labels; empty if unknown.
        device: ``"cpu"`` or a GPU, ``"cuda:0"``.
        score_threshold: default of calls.
    """

    model: Any
    classes: tuple[str, ...]
    device: str
    score_threshold: float

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        score_threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        bgr: bool = False,
    ) -> Detections | Iterator[Detections]:
        """Detect objects.

        Args:
            images: a file; a PIL image; an array, [H, W, 3], uint8, RGB; or a tensor, [3, H, W], RGB, uint8
                or between 0 and 1. For a list of those, a folder, a pattern (``"street/*.jpg"``) or a video
                file, the result is an iterator, which reads and detects one batch at a time.
            batch_size: images of a batch are padded to a common size, as in MMDetection. This can change
                detections near the right and lower border.
            score_threshold: drop detections with a lower score (default: that of the detector).
            classes: names of the classes to keep.
            max_detections: maximum number per image.
            bgr: arrays and tensors are BGR, as OpenCV reads them.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: an image cannot be read, or does not fit the model's input; or no class has this name.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        unknown = sorted(set(classes or ()) - set(self.classes))
        if unknown:
            raise ValueError(f"classes: expected some of {', '.join(self.classes)}, got {unknown[0]}")
        several = _several(images, bgr)
        threshold = self.score_threshold if score_threshold is None else score_threshold
        results = self._results([images] if several is None else several, batch_size, threshold, bgr)
        kept = (_filtered(result, classes, max_detections) for result in results)
        return next(kept) if several is None else kept

    def _results(
        self, images: Iterable[Any], batch_size: int, threshold: float, bgr: bool
    ) -> Iterator[Detections]:
        iterator = iter(images)
        while batch := list(itertools.islice(iterator, batch_size)):
            paths = [str(image) if isinstance(image, str | os.PathLike) else "" for image in batch]
            pictures = [read(image, bgr) for image in batch]
            results = self._detect(pictures, paths, threshold)
            for picture, path, result in zip(pictures, paths, results, strict=True):
                order = np.argsort(-result.scores, kind="stable")
                image = np.ascontiguousarray(picture[..., ::-1])
                yield dataclasses.replace(
                    result.select(order), classes=tuple(self.classes), image=image, path=path
                )

    def _detect(
        self, pictures: Sequence[np.ndarray], paths: Sequence[str], threshold: float
    ) -> Sequence[Detections]:
        """Detect the objects in a batch of pictures, [H, W, 3], uint8, BGR, above a score threshold."""
        raise NotImplementedError


def _several(images: Any, bgr: bool) -> Iterable[Any] | None:
    """Return the images of a list, folder, pattern or video; None for a single image."""
    if isinstance(images, str | os.PathLike):
        if Path(images).suffix.lower() in VIDEOS:
            return _frames(images, bgr)
        return picture_files(images)
    single = hasattr(images, "shape") or not isinstance(images, Iterable)  # an array, a tensor, a PIL image
    return None if single else images


def _frames(path: str | os.PathLike, bgr: bool) -> Iterator[np.ndarray]:
    import cv2

    if not Path(path).is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ValueError(f"image: expected a video that OpenCV can read, got {path}")
        while (frame := video.read()[1]) is not None:
            yield frame if bgr else frame[..., ::-1]
    finally:
        video.release()


def _filtered(result: Detections, classes: Sequence[str] | None, max_detections: int | None) -> Detections:
    if classes is not None:
        result = result.select(np.isin(np.array(result.names, dtype=str), list(classes)))
    return result.select(slice(max_detections))
