"""Formats of files by their endings; the files and pictures below a folder."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcnzoo.utils.errors import UserError, note
from dcnzoo.utils.files import expanded
from dcnzoo.utils.text import counted, few

# endings of the formats that both OpenCV and Pillow read
PICTURES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
UNREAD_PICTURES = (".heic", ".heif", ".raw", ".dng", ".cr2", ".nef", ".arw", ".jxl", ".svg", ".psd")

BACKENDS = {".onnx": "onnxruntime", ".xml": "openvino"}  # ending of an exported file → its runtime
EXPORTED = tuple(BACKENDS)
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# folders, in lower case, into which systems put thumbnails and deleted files
_OF_SYSTEMS = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"}


def is_video(image: Any) -> bool:
    """Whether this is the name of a video file."""
    named = isinstance(image, str | os.PathLike) and "://" not in str(image)
    return named and Path(image).suffix.lower() in VIDEOS


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder and links in it, in order, without hidden files; yield as ``os.walk`` does.

    A link to a folder above itself is left out, and nothing below a folder is visited a second time.
    """
    visited = set[str]()
    above: dict[str, set[str]] = {}  # the real paths of a folder and of those above it
    for folder, folders, names in os.walk(root, followlinks=True):
        key, parents = os.path.realpath(folder), above.get(os.path.dirname(folder), set())
        if key in parents:
            folders.clear()
            continue
        above[folder] = parents | {key}
        folders[:] = [] if key in visited else sorted(filter(_is_visible, folders))
        visited.add(key)
        yield Path(folder), folders, sorted(filter(_is_visible, names))


def _is_visible(name: str) -> bool:
    """Whether a file or folder is the user's own, neither hidden nor the system's."""
    return not name.startswith(".") and name.lower() not in _OF_SYSTEMS


def picture_files(name: str | os.PathLike) -> list[str] | None:
    """List the pictures of a folder and its subfolders, or the files of a pattern such as ``street/*.jpg``.

    Returns None for a file or an address.

    Raises:
        UserError: there are none.
    """
    path = expanded(name)
    if "://" in str(name):
        return None
    unread: list[str] = []
    if path.is_dir():
        walked = [str(folder / name) for folder, _, names in walk(path) for name in names]
        files = sorted(file for file in walked if file.lower().endswith(PICTURES))
        unread = [file for file in walked if file.lower().endswith(UNREAD_PICTURES)]
    elif any(letter in str(name) for letter in "*?[") and not path.exists():
        files = sorted(glob.glob(os.path.expanduser(name), recursive=True))
    else:
        return None
    left_out = ""
    if unread:
        left_out = f"{counted(len(unread), 'pictures')} in formats that are not read ({few(unread, 2)})"
    if not files:
        but = f", but {left_out}" if left_out else ""
        raise UserError(f"images: expected pictures, found none in {name}{but}")
    if left_out:
        note(f"left out: {left_out}")
    return files
