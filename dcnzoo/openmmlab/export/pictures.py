"""The part of a detector to export, and the images for tracing, calibration and verification.

:mod:`dcnzoo.openmmlab.export.export` calls all of it; :mod:`dcnzoo.openmmlab.export.verify` compares the
images.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmdet.models.detectors import SemiBaseDetector
from torch import nn

from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.detect.backends import IMG_SHAPE
from dcnzoo.detect.pictures import read
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.session import stack
from dcnzoo.utils.formats import picture_files


def predicting_part(detector: nn.Module) -> nn.Module:
    """Return the teacher or the student of a semi-supervised detector, and any other detector itself."""
    if isinstance(detector, SemiBaseDetector):
        return getattr(detector, detector.semi_test_cfg.get("predict_on", "teacher"))
    return detector


def generated_picture(preprocessing: Preprocessing) -> np.ndarray:  # [H, W, 3], uint8, BGR
    """Draw shapes into a picture of 3:2, which the test pipeline enlarges by two factors, if it resizes."""
    third = max(53, max(preprocessing.scale or (640, 640)) * 7 // 30)
    third += third % 3 == 0  # then, rounding makes the factors of width and height different
    square, _ = draw_image(ShapesSpec(size=2 * third), "val", 0)
    return np.ascontiguousarray(np.tile(square, (1, 2, 1))[:, : 3 * third])


def pictures_to_verify(source: str | os.PathLike | bool, preprocessing: Preprocessing) -> list[np.ndarray]:
    """Read a picture or the first ten of a folder; True: a generated picture."""
    if isinstance(source, bool):
        return [generated_picture(preprocessing)]
    files = picture_files(source) or [os.fspath(source)]
    return [read(file) for file in files[:10]]


def calibration_inputs(
    preprocessing: Preprocessing,
    files: Sequence[Path],
    shape: tuple[int, int] | None,  # of the graph; None: dynamic
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of a model by name for image files."""
    for file in files:
        limit = shape or (None, None)
        images, size = preprocessing(read(file), limit)
        yield {
            "input": stack([images], limit, preprocessing.pad_value),
            IMG_SHAPE: np.array([preprocessing.padded(size, limit)]),
        }
