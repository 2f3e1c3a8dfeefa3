"""The interface of all detectors, with PyTorch or with an exported file. Requires only numpy."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

import numpy as np

from dcnzoo.detect import sources
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.pictures import picture_to_show
from dcnzoo.utils.text import counted, few, problem_of_size

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Options(TypedDict, total=False):
    """The options of a detector's call."""

    batch_size: int
    score_threshold: float | None
    classes: str | Sequence[str] | None
    max_detections: int | None
    bgr: bool
    tile: int | None


class Results(Iterator[Detections]):
    """An iterator over the detections of several images, which are read and processed as you iterate.

    An image that cannot be read is skipped; standard error names it.

    Attributes:
        skipped: one line for each image that was skipped.
    """

    def __init__(self, results: Iterator[Detections], skipped: list[str]) -> None:
        self.skipped = skipped
        self._results = results

    def __next__(self) -> Detections:
        return next(self._results)

    def __repr__(self) -> str:
        return "<Results: iterate over them; each picture is detected when it is reached>"


class BaseDetector:
    """A detector for pictures: :func:`dcnzoo.load` returns one.

    Attributes:
        model: the ``nn.Module``, or the :class:`~dcnzoo.detect.session.Session` of an exported file.
        classes: the names of the labels; empty if unknown.
        device: ``"cpu"`` or a GPU, ``"cuda:0"``.
        score_threshold: default of calls.
        name: the name of the model, which files of detections contain.
        channels: of the pictures; 3 but for models whose backbone has other ``in_channels``.
    """

    model: Any
    classes: tuple[str, ...]
    device: str
    score_threshold: float
    name: str = ""
    channels: int = 3

    @property
    def names(self) -> dict[int, str]:
        """The name of each label."""
        return dict(enumerate(self.classes))

    def __repr__(self) -> str:
        classes = f"{counted(len(self.classes), 'classes')}: {few(self.classes, 4)}"
        return f"{type(self).__name__}({self._source}, {classes}, {self.device})"

    @property
    def _source(self) -> str:
        """The model and its runtime, for ``repr``."""
        raise NotImplementedError

    # for type checkers, a text is one picture: the Results of a folder, a pattern or a video need a cast
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], **options: Unpack[_Options]) -> Results: ...
    @overload
    def __call__(self, images: Any, **options: Unpack[_Options]) -> Detections: ...

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
            images: a file or an http:// or https:// address; its content, as bytes or an open file; a PIL
                image; an array, [H, W, 3], uint8, RGB, or [H, W], grey; or a tensor, [3, H, W], RGB, uint8 or
                between 0 and 1. For a model of C channels that are not 3, an array [H, W, C] as in training.
                For a list of those, a tensor [N, 3, H, W], a folder, a pattern (``"street/*.jpg"``) or a
                video file, the result is an iterator, which skips images that cannot be read.
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
            ValueError: a single image cannot be read or downloaded, or does not fit the model's input; no
                class has this name; or a number is out of range.
        """
        _require("batch_size", batch_size, 1)
        _require("max_detections", max_detections, 0)
        _require("tile", tile, 16)
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if not (isinstance(threshold, Real) and threshold <= 1):  # nor NaN
            raise ValueError(f"score_threshold: expected a number of at most 1, got {threshold!r}")
        classes = [classes] if isinstance(classes, str) else classes
        unknown = sorted(set(classes or ()) - set(self.classes))
        if unknown:
            raise ValueError(f"classes: expected some of {', '.join(self.classes)}, got {unknown[0]}")
        sequence = sources.several(images)
        skipped: list[str] | None = None if sequence is None else []
        sequence = [images] if sequence is None else sequence
        results = self._results(sequence, batch_size, threshold, bgr=bgr, tile=tile, skipped=skipped)
        kept = (_filtered(result, classes, max_detections) for result in results)
        return next(kept) if skipped is None else Results(kept, skipped)

    def evaluate(
        self, annotations: str | os.PathLike[str], *, images: str | os.PathLike[str], batch_size: int = 1
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
            ValueError: an image cannot be read or has another size than in the file, the categories are not
                classes of the detector, or ``batch_size`` is below 1.
        """
        from dcnzoo.detect.metrics import evaluate, read_coco

        _require("batch_size", batch_size, 1)
        truth = read_coco(os.path.expanduser(annotations), self.classes)
        images = os.path.expanduser(images)
        entries = [truth.imgs[number] for number in sorted(truth.imgs)]
        files = [Path(images, entry["file_name"]) for entry in entries]
        results = self._results(files, batch_size, threshold=0.0)
        return evaluate(truth, map(_require_size, results, entries))

    # TorchDetector has these; here for type checkers and for a clear error, as dcnzoo.load returns this class

    def export(self, *arguments: Any, **options: Any) -> Any:
        raise ValueError(f"export: {self._needs_torch}")

    def features(self, *arguments: Any, **options: Any) -> Any:
        raise ValueError(f"features: {self._needs_torch}")

    def push_to_hub(self, *arguments: Any, **options: Any) -> str:
        raise ValueError(f"push_to_hub: {self._needs_torch}")

    @property
    def _needs_torch(self) -> str:
        return f"expected a detector with PyTorch, got {self!r}"

    def require_three_channels(self, work: str) -> None:
        """Raise ValueError if the model's pictures have another number of channels."""
        if self.channels != 3:
            raise ValueError(f"{work}: expected a model of pictures with 3 channels, got {self.channels}")

    def _results(
        self,
        images: Iterable[Any],
        batch_size: int,
        threshold: float,
        bgr: bool = False,
        tile: int | None = None,
        skipped: list[str] | None = None,  # None: errors are raised
    ) -> Iterator[Detections]:
        named = sources.with_progress(sources.named(images, bgr, self.channels), sources.count(images))
        together = 1 if tile else batch_size
        named = sources.read_ahead(named, self.channels, together + 2)
        began = time.monotonic()
        while batch := list(itertools.islice(named, together)):
            pictures, inputs, results = [], [], []
            for path, read_picture in batch:
                with sources.skipping(skipped):
                    picture = read_picture()
                    if tile:
                        results.append(self._detect_in_tiles(picture, path, threshold, batch_size, tile))
                    else:
                        inputs.append(self.prepare(picture, path))
                    pictures.append((path, picture))
            if inputs:
                results = self._detect(inputs, threshold)
            seconds = (time.monotonic() - began) / max(len(results), 1)
            for (path, picture), result in zip(pictures, results, strict=True):
                result = result[np.argsort(-result.scores, kind="stable")]
                yield dataclasses.replace(
                    result,
                    classes=tuple(self.classes),
                    image=picture_to_show(picture),
                    path=path,
                    model=self.name or "a detector",
                    seconds=seconds,
                )
            began = time.monotonic()

    def prepare(self, picture: np.ndarray, path: str = "") -> Any:
        """Convert a picture, [H, W, channels], uint8, BGR, to the model's input; ``path`` is for messages.

        Raises:
            ValueError: the picture does not fit the model's input.
        """
        raise NotImplementedError

    def _detect(self, inputs: Sequence[Any], threshold: float) -> list[Detections]:
        """Detect the objects in a batch of outputs of :meth:`prepare`, above a score threshold."""
        raise NotImplementedError

    def _detect_in_tiles(
        self, picture: np.ndarray, path: str, threshold: float, batch_size: int, tile: int
    ) -> Detections:
        from dcnzoo.detect.tiles import merge, windows

        size = picture.shape[:2]
        places, results = windows(size, tile), []
        for start in range(0, len(places), batch_size):
            inputs = [
                self.prepare(np.ascontiguousarray(picture[place]), path)
                for place in places[start : start + batch_size]
            ]
            results += self._detect(inputs, threshold)
        return merge(results, places, size) if len(places) > 1 else results[0]


def _require(name: str, value: int | None, least: int) -> None:
    if value is not None and not (isinstance(value, Integral) and value >= least):
        raise ValueError(f"{name}: expected an integer ≥ {least}, got {value!r}")


def _require_size(result: Detections, entry: dict[str, Any]) -> Detections:
    """Return the result; raise ValueError if its picture has another size than its entry in a COCO file."""
    height, width = result.image.shape[:2]  # type: ignore[union-attr]
    if problem := problem_of_size((width, height), (entry.get("width"), entry.get("height"))):
        raise ValueError(f"{result.path}: {problem}")
    return result


def _filtered(result: Detections, classes: Sequence[str] | None, max_detections: int | None) -> Detections:
    if classes is not None:
        result = result[np.isin(np.array(result.names, dtype=str), list(classes))]
    return result[:max_detections]
