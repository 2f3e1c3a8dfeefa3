"""What dcnzoo writes says so in itself: ``detections of MODEL``, ``export of MODEL``.

A command may replace a file with the mark that it would write. Detections are never taken as annotations.
"""

import json
import mmap
import os
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DETECTIONS = "detections of "
RESULTS = "results.json"  # in a folder that infer has written: the model and the settings
KEY = "dcnzoo.mark"  # in the metadata of exported files
_HEAD = 4096  # bytes; they have the mark of every file but those of _LAST
_LAST = {".onnx": 2**24, ".xml": 2**20, ".pt2": 2**40, ".mp4": 2**10, ".avi": 2**10}  # bytes at the end
_TEXT = rb"([a-z]+ of [\x20\x21\x23-\x3b\x3d-\x7e]+)"  # without quotes and <, which end it
# a chunk of PNG, a comment of JPEG, an entry in the head of a page, the first line of a program
_BEFORE = rb'tEXtdcnzoo\0|\xff\xfe..dcnzoo: |<meta name="dcnzoo" content="|\A# dcnzoo: '
_FIRST = re.compile(rb"(?:%b)%b" % (_BEFORE, _TEXT), re.DOTALL)
_JSON = re.compile(rb'"description":\s*"%b",\s*"contributor":\s*"dcnzoo' % _TEXT)
_AT_END = re.compile(rb"dcnzoo\.mark[^a-z]*?(?:value=\")?%b" % _TEXT)


def mark(what: str, name: object) -> str:
    """Return a mark, ``detections of MODEL``."""
    text = f"{what} of {name}".encode("ascii", "backslashreplace").decode()
    return re.sub(r'["<\\]', "'", text)


def info(mark: str) -> dict[str, str]:
    """Return the entry ``info``, the first of a COCO file with a mark."""
    return {"description": mark, "contributor": "dcnzoo"}


def mark_of(path: str | os.PathLike) -> str:
    """Return the mark of a file; an empty text if it has none, or is no file."""
    try:
        if not os.path.isfile(path):  # a pipe would wait for its other end
            return ""
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            found = _FIRST.search(head) or _JSON.search(head)
            last = _LAST.get(Path(path).suffix)
            if not found and last and head:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    found = _AT_END.search(content, max(0, len(content) - last))
            return found[1].decode() if found else ""
    except OSError:
        return ""


def is_detection(path: str | os.PathLike) -> bool:
    """Whether a detector of dcnzoo wrote a COCO file, a picture or a folder.

    Of a COCO file whose entries another program has moved, :func:`is_of_detector` reads the content.
    """
    if not os.path.isdir(path):
        return mark_of(path).startswith(DETECTIONS)
    try:
        settings = json.loads(Path(path, RESULTS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and {"model", "score_threshold"} <= settings.keys()


def is_of_detector(content: Any) -> bool:
    """Whether a detector of dcnzoo wrote the content of a COCO file."""
    entry = content.get("info") if isinstance(content, Mapping) else None
    return (
        isinstance(entry, Mapping)
        and str(entry.get("description")).startswith(DETECTIONS)
        and str(entry.get("contributor")).startswith("dcnzoo")
    )


def add_mark(content: bytes, mark: str) -> bytes:
    """Return the content of a PNG or JPEG file with a mark; other formats stay as they are."""
    text = mark.encode()
    if content[:4] == b"\x89PNG":  # after the header, which has 33 bytes
        chunk = b"tEXtdcnzoo\0" + text
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return content[:33] + chunk + content[33:]
    if content[:2] == b"\xff\xd8":  # after JFIF's segment, which must be the first
        place = 4 + int.from_bytes(content[4:6], "big") if content[2:4] == b"\xff\xe0" else 2
        text = b"dcnzoo: " + text
        return content[:place] + b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text + content[place:]
    return content
