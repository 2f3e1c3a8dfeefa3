"""Images that a command is given."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from dcnzoo.utils.errors import UserError


def require_images(paths: Iterable[str]) -> None:
    """Raise UserError unless each path is that of a file that begins as an image does."""
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"image: expected a file, found none at {path}")
        if not cv2.haveImageReader(path):
            raise UserError(f"image: expected a picture that OpenCV can read, found something else in {path}")


def read_image(path: str) -> np.ndarray:  # [H, W, 3], uint8, RGB
    """As the pipelines of MMDetection read it."""
    image = cv2.imread(path)
    if image is None:
        raise UserError(f"image: expected a picture that OpenCV can read, found a broken one in {path}")
    return image[..., ::-1].copy()
