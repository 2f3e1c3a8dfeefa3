"""The images of a call: files, folders, patterns, videos, arrays."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from dcnzoo.detect.pictures import read
from dcnzoo.detect.video import frames, head_of
from dcnzoo.utils.errors import note, one_line
from dcnzoo.utils.files import require_file
from dcnzoo.utils.formats import is_video, picture_files


def several(images: Any) -> Iterable[Any] | None:
    """Return the images of a list, batch, folder or pattern, or ``[video]``; None for a single image."""
    if isinstance(images, str | os.PathLike):
        if not is_video(images):
            return picture_files(images)
        require_file(str(images), "image")
        return [images]
    if getattr(images, "ndim", 0) == 4:
        return list(images)
    # an array, a tensor, a PIL image, an open file
    single = hasattr(images, "shape") or hasattr(images, "read") or not isinstance(images, Iterable)
    return None if single or isinstance(images, bytes | bytearray) else images


def named(images: Iterable[Any], bgr: bool, channels: int) -> Iterator[tuple[str, Any, bool]]:
    """Yield images and frames of videos with their paths: ``street.jpg``, ``street.mp4#1`` or none.

    The third value is whether arrays are BGR, as frames are. In place of a video that cannot be read, its
    error is yielded.
    """
    for image in images:
        if is_video(image):
            try:
                for number, frame in enumerate(frames(image, grey=channels == 1), 1):
                    yield f"{image}#{number}", frame, True
            except (OSError, ValueError) as error:
                yield str(image), error, bgr
        else:
            yield str(image) if isinstance(image, str | os.PathLike) else "", image, bgr


class ModelError(ValueError):
    """The detector cannot be used with any picture."""


@contextlib.contextmanager
def skipping(skipped: list[str] | None) -> Iterator[None]:
    """Context in which the error of an image is added to a list; without a list, it is raised."""
    try:
        yield
    except (OSError, ValueError) as error:
        if skipped is None or isinstance(error, ModelError):
            raise
        skipped.append(one_line(error))
        note(f"skipped: {skipped[-1]}")


def count(images: Iterable[Any]) -> int | None:
    """Return the number of images and frames; None if it is unknown."""
    if not isinstance(images, Sized):
        return None
    videos = [int(head_of(image, "FRAME_COUNT")) for image in images if is_video(image)]
    return None if min(videos, default=1) < 1 else len(images) - len(videos) + sum(videos)


def with_progress(images: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Yield the images; if there are several, show the progress."""
    if total == 1:
        return images
    try:
        from dcnzoo.utils.progress import track
    except ModuleNotFoundError:  # an exported detector does not require rich
        return images
    return track(images, "detecting", total)


def _read(image: Any, bgr: bool, channels: int) -> np.ndarray:
    if isinstance(image, Exception):
        raise image
    return read(image, bgr, channels)


def read_ahead(
    images: Iterator[tuple[str, Any, bool]], channels: int, number: int
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yield images with a function that returns the picture; the next ones are read in other threads."""
    pool = ThreadPoolExecutor(2)
    ahead: deque[tuple[str, Future[np.ndarray]]] = deque()
    # This code never waits for a thread. The garbage collector may close an abandoned iterator in a thread
    # that is just starting and holds Python's lock of all threads: a wait would never end.
    try:
        for path, image, bgr in images:
            ahead.append((path, pool.submit(_read, image, bgr, channels)))
            if len(ahead) > number:
                first, picture = ahead.popleft()
                yield first, picture.result
        for path, picture in ahead:
            yield path, picture.result
    except BaseException:  # closed early
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait=False)  # the last batch is still read
