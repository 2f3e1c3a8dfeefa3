"""Endings of files."""

import os
from pathlib import Path
from typing import Any

# endings of the formats that both OpenCV and Pillow read
PICTURES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
UNREAD_PICTURES = (".heic", ".heif", ".raw", ".dng", ".cr2", ".nef", ".arw", ".jxl", ".svg", ".psd")

# endings of exported files and the runtimes that open them
BACKENDS = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "aotinductor"}
EXPORTED = tuple(BACKENDS)
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# what a file is by its ending, for errors about a wrong file
KINDS = {
    **dict.fromkeys(PICTURES, "a picture"),
    **dict.fromkeys(VIDEOS, "a video"),
    **dict.fromkeys(EXPORTED, "an exported detector"),
    **dict.fromkeys((".yml", ".yaml", ".txt", ".log", ".csv", ".html", ".md"), "a text"),
    **{".py": "a config", ".json": "a JSON file", ".zip": "an archive"},
}


def is_video(image: Any) -> bool:
    """Whether this is the name of a video file."""
    named = isinstance(image, str | os.PathLike) and "://" not in str(image)
    return named and Path(image).suffix.lower() in VIDEOS
