"""Write drawn pictures into a video file. Requires OpenCV."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcnzoo.detect.sources import is_video

if TYPE_CHECKING:
    import PIL.Image

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}


class VideoFile:
    """A video that is written frame by frame, to a temporary name until it is closed.

    Args:
        path: the file; its ending is one of :data:`CODECS`.
        sources: the images of the call. The first video among them determines the frames per second.
    """

    def __init__(self, path: Path, sources: Sequence[str | os.PathLike]) -> None:
        try:
            import cv2
        except ModuleNotFoundError as error:
            raise ImportError("video: expected OpenCV: pip install opencv-python-headless") from error
        self._cv2: Any = cv2
        self._writer: Any = None
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        videos = list(filter(is_video, sources))
        rate = cv2.VideoCapture(str(videos[0])).get(cv2.CAP_PROP_FPS) if videos else 0
        self._rate, self._size = rate or 10.0, (0, 0)

    def add(self, frame: PIL.Image.Image) -> None:
        """Append a frame. A frame of another size is resized to that of the first."""
        if self._writer is None:
            self._size = frame.size
            codec = self._cv2.VideoWriter_fourcc(*CODECS[self.path.suffix])
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._cv2.VideoWriter(str(self._partial), codec, self._rate, self._size)
            if not self._writer.isOpened():
                raise ValueError(f"video: {self.path} cannot be written by OpenCV")
        pixels = np.asarray(frame.convert("RGB").resize(self._size))
        self._writer.write(np.ascontiguousarray(pixels[..., ::-1]))

    def close(self) -> list[Path]:
        """Finish the file; return its path, or nothing if it has no frame."""
        if self._writer is None:
            return []
        self._writer.release()
        os.replace(self._partial, self.path)
        return [self.path]
