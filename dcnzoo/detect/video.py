"""Read the frames of a video, and write drawn pictures into one. Requires OpenCV."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcnzoo.detect.pictures import reverse_channels
from dcnzoo.utils.errors import UserError, note
from dcnzoo.utils.files import replacing
from dcnzoo.utils.formats import is_video

if TYPE_CHECKING:
    import PIL.Image

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ImportError("video: expected OpenCV: pip install opencv-python-headless") from error
    return cv2


def frames(path: str | os.PathLike, grey: bool = False) -> Iterator[np.ndarray]:
    """Yield the frames of a video, [H, W, 3], uint8, BGR, or [H, W], grey.

    If there are fewer of them than its header states, a line on standard error says so.
    """
    cv2, number = _opencv(), 0
    video = cv2.VideoCapture(os.path.expanduser(path))
    try:
        if not video.isOpened():
            raise ValueError(f"image: expected a video that OpenCV can read, got {path}")
        while (frame := video.read()[1]) is not None:
            number += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if grey else frame
        if number < (stated := int(video.get(cv2.CAP_PROP_FRAME_COUNT))):
            note(f"{path}: the header states {stated} frames, {number} were read")
    finally:
        video.release()


class VideoFile:
    """A video that is written frame by frame; :meth:`close` puts it at ``path``.

    Args:
        path: the file; its ending is one of :data:`CODECS`.
        sources: the images of the call. The first video among them determines the frames per second.
    """

    def __init__(self, path: Path, sources: Sequence[str | os.PathLike]) -> None:
        self._cv2, self.path = _opencv(), path
        self._replacing = ExitStack()
        self._partial = Path()
        videos = list(filter(is_video, sources))
        self._rate = (videos and head_of(videos[0], "FPS")) or 10.0
        self._writer: Any = None
        self._size = (0, 0)
        self._frames = 0

    def add(self, frame: "PIL.Image.Image") -> None:
        """Append a frame. A frame of another size is resized to that of the first."""
        if self._writer is None:
            self._size, code = frame.size, self._cv2.VideoWriter_fourcc(*CODECS[self.path.suffix])
            self._partial = self._replacing.enter_context(replacing(self.path))
            self._writer = self._cv2.VideoWriter(str(self._partial), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise ValueError(f"video: {self.path} cannot be written by OpenCV")
        self._writer.write(reverse_channels(np.asarray(frame.convert("RGB").resize(self._size))))
        self._frames += 1

    def close(self) -> list[Path]:
        """Finish the file; return its path, or nothing if it has no frame.

        Raises:
            UserError: the video is not complete; a previous file is unchanged.
        """
        if self._writer is None:
            return []
        with self._replacing:
            self._writer.release()
            video = self._cv2.VideoCapture(str(self._partial))
            video.set(self._cv2.CAP_PROP_POS_FRAMES, self._frames - 1)
            if not video.read()[0]:  # OpenCV does not report a full disk
                problem = "it is not complete. The previous file is unchanged"
                raise UserError(f"{self.path} cannot be written: {problem}")
        return [self.path]


def head_of(path: str | os.PathLike, name: str) -> float:
    """Return ``FPS`` or ``FRAME_COUNT`` from a video's header; 0 if the header does not state it."""
    cv2 = _opencv()
    return cv2.VideoCapture(os.path.expanduser(path)).get(getattr(cv2, f"CAP_PROP_{name}"))
