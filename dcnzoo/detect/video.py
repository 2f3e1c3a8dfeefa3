"""Read the frames of a video, and write drawn pictures into one. Requires OpenCV or PyAV."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcnzoo.detect.pictures import reverse_channels
from dcnzoo.utils.files import is_video, replacing
from dcnzoo.utils.marks import append_mark

if TYPE_CHECKING:
    import PIL.Image

CODECS = {".mp4": ("mp4v", "mpeg4"), ".avi": ("MJPG", "mjpeg")}  # their names in OpenCV and in PyAV
LIBRARIES = ("cv2", "av")  # the first that is installed is used
# how to append a picture, [H, W, 3], uint8, RGB, and how to finish the file
Writer = tuple[Callable[[np.ndarray], None], Callable[[], None]]


def _library() -> Any:
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):
            return import_module(name)
    raise ImportError("video: expected OpenCV or PyAV: pip install opencv-python-headless")


def frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield the frames of a video, [H, W, 3], uint8, BGR."""
    library, name = _library(), os.path.expanduser(path)
    if library.__name__ == "av":
        try:
            with library.open(name) as container:
                for frame in container.decode(video=0):
                    # counter-clockwise, in degrees; OpenCV turns the frames of a phone by itself
                    yield np.rot90(frame.to_ndarray(format="bgr24"), frame.rotation // 90)
        except (library.FFmpegError, IndexError) as error:  # IndexError: it has only sound
            raise ValueError(f"image: expected a video that PyAV can read, got {path}") from error
        return
    video = library.VideoCapture(name)
    try:
        if not video.isOpened():
            raise ValueError(f"image: expected a video that OpenCV can read, got {path}")
        while (frame := video.read()[1]) is not None:
            yield frame
    finally:
        video.release()


class VideoFile:
    """A video that is written frame by frame, and is in its place when it is closed.

    Args:
        path: the file; its ending is one of :data:`CODECS`.
        sources: the images of the call. The first video among them determines the frames per second.
        mark: of the file; see :mod:`dcnzoo.utils.marks`.
    """

    def __init__(self, path: Path, sources: Sequence[str | os.PathLike], mark: str) -> None:
        self._library, self.path, self._mark = _library(), path, mark
        self._replacing = ExitStack()
        self._partial = Path()
        videos = list(filter(is_video, sources))
        self._rate = (_rate(self._library, videos[0]) if videos else None) or 10.0
        self._writer: Writer | None = None
        self._size = (0, 0)
        self._frames = 0

    def add(self, frame: "PIL.Image.Image") -> None:
        """Append a frame. A frame of another size is resized to that of the first."""
        if self._writer is None:
            self._size = frame.size
            self._partial = self._replacing.enter_context(replacing(self.path))
            create = _create_with_av if self._library.__name__ == "av" else _create_with_opencv
            self._writer = create(self._library, self._partial, self._rate, self._size)
        self._writer[0](np.asarray(frame.convert("RGB").resize(self._size)))
        self._frames += 1

    def close(self) -> list[Path]:
        """Finish the file; return its path, or nothing if it has no frame.

        Raises:
            UserError: it is not complete; an earlier file stays.
        """
        if self._writer is None:
            return []
        with self._replacing:
            self._writer[1]()
            if not _is_complete(self._library, self._partial, self._frames):
                raise OSError("it is not complete. The previous file is unchanged")
            append_mark(self._partial, self._mark)
        return [self.path]


def frame_count(path: str | os.PathLike) -> int | None:
    """Return the number of frames that a video's head states; None if it states none."""
    library, name = _library(), os.path.expanduser(path)
    if library.__name__ != "av":
        number = int(library.VideoCapture(name).get(library.CAP_PROP_FRAME_COUNT))
        return number if number > 0 else None
    with suppress(library.FFmpegError, IndexError), library.open(name) as container:
        return container.streams.video[0].frames or None
    return None


def _is_complete(library: Any, path: Path, frames: int) -> bool:
    """Whether the last frame of a written video can be read: OpenCV does not tell of a full disk."""
    if library.__name__ == "av":
        return True
    video = library.VideoCapture(str(path))
    video.set(library.CAP_PROP_POS_FRAMES, frames - 1)
    return video.read()[0]


def _rate(library: Any, path: str | os.PathLike) -> float | None:
    """Return the frames per second of a video; None if they are unknown."""
    name = os.path.expanduser(path)
    if library.__name__ != "av":
        return library.VideoCapture(name).get(library.CAP_PROP_FPS)
    with suppress(library.FFmpegError, IndexError), library.open(name) as container:
        return container.streams.video[0].average_rate
    return None


def _create_with_opencv(cv2: Any, path: Path, rate: float, size: tuple[int, int]) -> Writer:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODECS[path.suffix][0]), rate, size)
    if not writer.isOpened():
        raise ValueError(f"video: {path} cannot be written by OpenCV")
    return lambda pixels: writer.write(reverse_channels(pixels)), writer.release


def _create_with_av(av: Any, path: Path, rate: float, size: tuple[int, int]) -> Writer:
    container = av.open(str(path), "w")
    stream = container.add_stream(CODECS[path.suffix][1], rate=Fraction(rate).limit_denominator(1001))
    stream.width, stream.height = size
    stream.pix_fmt = stream.codec.video_formats[0].name
    stream.bit_rate = 8 * size[0] * size[1]  # per second; PyAV's default has visible blocks

    def add(pixels: np.ndarray) -> None:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))

    def close() -> None:
        container.mux(stream.encode())
        container.close()

    return add, close
