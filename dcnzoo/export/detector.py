"""The interface of all detectors, with PyTorch or with an exported file. Requires only numpy."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from dcnzoo.export.picture import Detections, read
from dcnzoo.utils.errors import one_line
from dcnzoo.utils.files import picture_files

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


class Results(Iterator[Detections]):
    """The detections of several images, which are read and detected when they are asked for.

    An image that cannot be read is skipped: one line on standard error names it, and a list at the end.

    Attributes:
        skipped: one line for each image that was skipped.
    """

    def __init__(self, results: Iterator[Detections], skipped: list[str]) -> None:
        self.skipped = skipped
        self._results = results

    def __next__(self) -> Detections:
        return next(self._results)


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
        classes: str | Sequence[str] | None = None,
        max_detections: int | None = None,
        bgr: bool = False,
        tile: int | None = None,
    ) -> Detections | Results:
        """Detect objects.

        Args:
            images: a file; a PIL image; an array, [H, W, 3], uint8, RGB; or a tensor, [3, H, W], RGB, uint8
                or between 0 and 1. For a list of those, a folder, a pattern (``"street/*.jpg"``) or a video
                file, the result is an iterator, which skips images that cannot be read.
            batch_size: images of a batch are padded to a common size, as in MMDetection. This can change
                detections near the right and lower border.
            score_threshold: drop detections with a lower score (default: that of the detector).
            classes: the name or names of the classes to keep.
            max_detections: maximum number per image.
            bgr: arrays and tensors are BGR, as OpenCV reads them.
            tile: detect in tiles with this side, in pixels, which overlap by a quarter, and merge the
                results. For pictures that are much larger than the images of the training. An object that is
                larger than the overlap may be detected in pieces.

        Raises:
            FileNotFoundError: a single file or a video does not exist.
            ValueError: a single image cannot be read, or does not fit the model's input; no class has this
                name; or a number is out of range.
        """
        _require("batch_size", batch_size, 1)
        _require("tile", tile, 16)
        _require("max_detections", max_detections, 0)
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if not threshold <= 1:  # also NaN
            raise ValueError(f"score_threshold: expected at most 1, got {threshold}")
        classes = [classes] if isinstance(classes, str) else classes
        unknown = sorted(set(classes or ()) - set(self.classes))
        if unknown:
            raise ValueError(f"classes: expected some of {', '.join(self.classes)}, got {unknown[0]}")
        several = _several(images)
        skipped: list[str] | None = None if several is None else []
        several = [images] if several is None else several
        results = self._results(several, batch_size, threshold, bgr, tile, skipped)
        kept = (_filtered(result, classes, max_detections) for result in results)
        return next(kept) if skipped is None else Results(kept, skipped)

    def evaluate(
        self, annotations: str | os.PathLike, *, images: str | os.PathLike, batch_size: int = 1
    ) -> dict[str, float]:
        """Return the average precision on the images of a COCO file, as ``dcnzoo test`` computes it.

        Requires pycocotools.

        Args:
            annotations: the COCO file. Its categories must be classes of the detector, by name.
            images: the folder of its images.
            batch_size: see :meth:`__call__`.

        Returns:
            ``{"box AP": 0.41, "box AP50": …, "box AP, small": …, "mask AP": …}``, between 0 and 1. Masks are
            evaluated if the detector predicts masks and the file has some. Sizes without an object are left
            out.

        Raises:
            FileNotFoundError: the file or one of its images does not exist.
            ValueError: an image cannot be read, the categories are not classes of the detector, or
                ``batch_size`` is below 1.
        """
        from dcnzoo.export.evaluation import evaluate, read_coco

        _require("batch_size", batch_size, 1)
        truth = read_coco(annotations, self.classes)
        files = [Path(images, truth.imgs[number]["file_name"]) for number in sorted(truth.imgs)]
        return evaluate(truth, self._results(files, batch_size, 0.0, False, None, None))

    def _results(
        self,
        images: Iterable[Any],
        batch_size: int,
        threshold: float,
        bgr: bool,
        tile: int | None,
        skipped: list[str] | None,  # None: errors are raised
    ) -> Iterator[Detections]:
        named = _with_progress(_named(images, bgr, skipped), _count(images))
        while batch := list(itertools.islice(named, 1 if tile else batch_size)):
            pictures, inputs, results = [], [], []
            for path, image in batch:
                with _skipping(skipped):
                    picture = read(image, bgr)
                    if tile:
                        results.append(self._detect_in_tiles(picture, path, threshold, batch_size, tile))
                    else:
                        inputs.append(self.prepare(picture, path))
                    pictures.append((path, picture))
            if inputs:
                results = self._detect(inputs, threshold)
            for (path, picture), result in zip(pictures, results, strict=True):
                order = np.argsort(-result.scores, kind="stable")
                image = np.ascontiguousarray(picture[..., ::-1])
                yield dataclasses.replace(
                    result.select(order), classes=tuple(self.classes), image=image, path=path
                )
        if skipped:
            print("skipped images:", *skipped, sep="\n  ", file=sys.stderr)

    def _detect_in_tiles(
        self, picture: np.ndarray, path: str, threshold: float, batch_size: int, tile: int
    ) -> Detections:
        from dcnzoo.export.tiles import merge, windows

        size = picture.shape[:2]
        places, results = windows(size, tile), []
        for start in range(0, len(places), batch_size):
            inputs = [
                self.prepare(np.ascontiguousarray(picture[place]), path)
                for place in places[start : start + batch_size]
            ]
            results += self._detect(inputs, threshold)
        return merge(results, places, size)

    def prepare(self, picture: np.ndarray, path: str = "") -> Any:
        """Convert a picture, [H, W, 3], uint8, BGR, to the model's input; ``path`` is for messages.

        Raises:
            ValueError: the picture does not fit the model's input.
        """
        raise NotImplementedError

    def _detect(self, inputs: Sequence[Any], threshold: float) -> list[Detections]:
        """Detect the objects in a batch of outputs of :meth:`prepare`, above a score threshold."""
        raise NotImplementedError


def _require(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _several(images: Any) -> Iterable[Any] | None:
    """Return the images of a list, folder or pattern, or a list of a video; None for a single image."""
    if isinstance(images, str | os.PathLike):
        if not _is_video(images):
            return picture_files(images)
        if not Path(images).is_file():
            raise FileNotFoundError(2, "No such file", str(images))
        return [images]
    single = hasattr(images, "shape") or not isinstance(images, Iterable)  # an array, a tensor, a PIL image
    return None if single or isinstance(images, bytes) else images


def _named(images: Iterable[Any], bgr: bool, skipped: list[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield images and frames of videos with their paths: ``street.jpg``, ``street.mp4#1`` or none."""
    for image in images:
        if _is_video(image):
            with _skipping(skipped):
                for number, frame in enumerate(_frames(image), 1):
                    yield f"{image}#{number}", frame if bgr else frame[..., ::-1]
        else:
            yield str(image) if isinstance(image, str | os.PathLike) else "", image


def _frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield the frames of a video, [H, W, 3], uint8, BGR."""
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ValueError(f"image: expected a video that OpenCV can read, got {path}")
        while (frame := video.read()[1]) is not None:
            yield frame
    finally:
        video.release()


@contextlib.contextmanager
def _skipping(skipped: list[str] | None) -> Iterator[None]:
    """Context in which an image that cannot be read is added to the list; without a list, it is an error."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if skipped is None:
            raise
        skipped.append(one_line(error))
        print(f"skipped: {skipped[-1]}", file=sys.stderr)


def _count(images: Iterable[Any]) -> int | None:
    """Return the number of images; None if it is unknown, as with a video."""
    if not isinstance(images, Sized) or any(map(_is_video, images)):
        return None
    return len(images)


def _is_video(image: Any) -> bool:
    return isinstance(image, str | os.PathLike) and Path(image).suffix.lower() in VIDEOS


def _with_progress(images: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Yield the images; if there are several and standard error is a terminal, show a progress bar."""
    if total == 1 or not sys.stderr.isatty():
        return images
    try:
        from rich.console import Console

        from dcnzoo.utils.progress import make_progress
    except ModuleNotFoundError:  # an exported detector does not require rich
        return images

    def tracked() -> Iterator[Any]:
        options = {"transient": True, "redirect_stdout": sys.stdout.isatty()}
        with make_progress(Console(stderr=True), **options) as progress:
            bar = progress.add_task("detecting", total=total, note="")
            yield from progress.track(images, task_id=bar)

    return tracked()


def _filtered(result: Detections, classes: Sequence[str] | None, max_detections: int | None) -> Detections:
    if classes is not None:
        result = result.select(np.isin(np.array(result.names, dtype=str), list(classes)))
    return result.select(slice(max_detections))
