"""The part of a detector to export, and the images for tracing, calibration and verification."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.models.detectors import SemiBaseDetector
from mmengine.config import Config
from torch import Tensor, nn

from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.detect.pictures import read
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.openmmlab.config_check import datasets
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.files import PICTURES, require_file


def predicting_part(detector: nn.Module) -> nn.Module:
    """Return the teacher or the student of a semi-supervised detector, and any other detector itself."""
    if isinstance(detector, SemiBaseDetector):
        return getattr(detector, detector.semi_test_cfg.get("predict_on", "teacher"))
    return detector


def find_preprocessing(cfg: Config, detector: nn.Module, classes: Sequence[str] = ()) -> Preprocessing:
    """Read the preprocessing steps from the config's test pipeline.

    Raises:
        ValueError: the pipeline has a step that is not supported.
    """
    dataset = next(datasets(cfg.get("test_dataloader", {}).get("dataset", {})))
    return preprocessing_of(dataset.get("pipeline", []), detector.data_preprocessor, classes)


def read_picture(
    path: str | None, found: Preprocessing | None, shape: tuple[int, int] | None = None
) -> np.ndarray:  # [H, W, 3], uint8, BGR
    """Read an image file. Without a path, draw generated shapes in the size of the test pipeline.

    Raises:
        UserError: the file does not exist, or OpenCV cannot read it.
    """
    if path is None:
        width, height = (found and found.scale) or (shape or (640, 640))[::-1]
        side = max(128, min(height, width))
        square, _ = draw_image(ShapesSpec(size=side), "val", 0)
        square = np.tile(square, (-(-height // side), -(-width // side), 1))
        return np.ascontiguousarray(square[:height, :width])
    require_file(path, "image")
    with user_errors():
        return read(path)


def calibration_files(data: Path, count: int) -> list[Path]:
    """Return up to ``count`` images, evenly spaced, of a folder with its subfolders or of a COCO file.

    The images of a COCO file are next to it, or in a folder next to the COCO file's folder.

    Raises:
        UserError: there are none.
    """
    expected = "--int8: expected a folder of images or a COCO file of images next to it"
    if data.is_dir():
        files = sorted(file for file in data.rglob("*") if file.suffix.lower() in PICTURES)
        if not files:
            raise UserError(f"{expected}, got a folder without images: {data}")
    else:
        require_file(str(data), "--int8")
        try:
            names = [entry["file_name"] for entry in json.loads(data.read_bytes())["images"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{expected}, got neither: {data}") from error
        above = data.resolve().parent.parent
        folders = [data.parent, above, *sorted(folder for folder in above.iterdir() if folder.is_dir())]
        found = next((folder for folder in folders for name in names[:1] if (folder / name).is_file()), None)
        if found is None:
            raise UserError(f"{expected}, got a file of {len(names)} images that are elsewhere: {data}")
        files = [found / name for name in names]
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def calibration_inputs(
    detector: nn.Module,
    found: Preprocessing | None,
    files: Sequence[Path],
    shape: tuple[int, int] | None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of a model by name for image files, after the config's test pipeline.

    Args:
        shape: the size of the graph; None: that of each image, for a dynamic graph.
    """
    for file in files:
        picture = read_picture(str(file), found, shape)
        _, images, size = model_input(detector, found, picture, shape or input_shape(found, picture, None))
        yield {"input": images.numpy(), "img_shape": np.array([size])}


def input_shape(
    found: Preprocessing | None, picture: np.ndarray, shape: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the padded height and width: of ``shape`` if given, else of the preprocessed picture."""
    if found is None:
        return shape
    if shape is None:
        return found(picture)[0].shape[2:]
    return tuple(size + -size % found.pad_divisor for size in shape)


def model_input(
    detector: nn.Module,
    found: Preprocessing | None,
    picture: np.ndarray,
    shape: tuple[int, int],
    filled: bool = False,
) -> tuple[np.ndarray, Tensor, tuple[int, int]]:
    """Prepare the model's input for a picture.

    Args:
        filled: stretch the picture to the whole input. Otherwise, a model that treats padding as image
            content finds objects there with equal scores, and only rounding decides their order.

    Returns:
        the picture after resizing, [h, w, 3], uint8, BGR; the input, ``[1, 3, *shape]``; and the height and
        width of the image in the input, as after the test pipeline.
    """
    if filled:
        picture = cv2.resize(picture, shape[::-1])
    if found is None:  # the test pipeline cannot be reproduced
        resized = cv2.resize(picture, shape[::-1])
        data = {"inputs": [torch.from_numpy(resized.transpose(2, 0, 1).copy())], "data_samples": None}
        return resized, detector.data_preprocessor(data, False)["inputs"], shape
    inputs, size = found(picture, shape)
    rest = [(0, whole - part) for whole, part in zip(shape, inputs.shape[2:], strict=True)]
    inputs = torch.from_numpy(np.pad(inputs, [(0, 0), (0, 0), *rest]))
    return cv2.resize(picture, size[::-1]), inputs, found.padded(size, shape)
