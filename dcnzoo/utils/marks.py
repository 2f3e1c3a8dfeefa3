"""What dcnzoo writes says so in itself: ``detections of MODEL``, ``export of MODEL``.

A command may replace a file with the mark that it would write, while the file has the content that was
written: beside the mark is a checksum. Detections are never taken as annotations.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcnzoo.utils.checksums import add_file

DETECTIONS = "detections of "
RESULTS = "results.json"  # in a folder that infer has written: the model and the settings
PROGRAM = "# dcnzoo: "  # before the mark in the first line of a config
KEY = "dcnzoo.mark"  # in the metadata of exported files
CHECKSUM = "dcnzoo.sha256"  # its value is zero while it is computed
BLANK = "0" * 64
_HEAD = 4096  # bytes; they have the mark of every file but those of _LAST
_LAST = {".onnx": 2**24, ".xml": 2**20, ".pt2": 2**10, ".mp4": 2**10, ".avi": 2**10}  # bytes at the end
_ENDS = b'"<>&|'  # what no mark has: it ends one in a file
_TEXT = rb"([a-z]+ of [^\x00-\x1f\x7f-\xff%b]+)" % re.escape(_ENDS)
# a chunk of PNG, a comment of JPEG, an entry in the head of a page, the first line of a program
_BEFORE = rb'tEXtdcnzoo\0|\xff\xfe..dcnzoo: |<meta name="dcnzoo" content="|\A# dcnzoo: '
_FIRST = re.compile(rb"(?:%b)%b" % (_BEFORE, _TEXT), re.DOTALL)
_JSON = re.compile(rb'"description":\s*"%b",\s*"contributor":\s*"dcnzoo' % _TEXT)
_AT_END = re.compile(rb"dcnzoo\.mark[^a-z]*?(?:value=\")?%b" % _TEXT)
_DIGEST = re.compile(re.escape(CHECKSUM).encode() + rb".{1,40}?([0-9a-f]{64})", re.DOTALL)
_PNG = b"\x89PNG"


def mark(what: str, name: object) -> str:
    """Return a mark, ``detections of MODEL``."""
    text = f"{what} of {name}".encode("ascii", "backslashreplace").decode()
    return re.sub(rf"[\\\x00-\x1f{re.escape(_ENDS.decode())}]", "'", text)


def entry(mark: str) -> str:
    """Return the value of :data:`KEY` in the metadata of an exported file."""
    return f"{mark}|"


def model_name(model: str | os.PathLike, checkpoint: str | os.PathLike | None = None) -> str:
    """Return the name of a model in marks: ``fruits`` of ``work_dirs/fruits/`` or ``configs/fruits.py``."""
    path = Path(os.path.expanduser(model))
    name = str(model)
    if os.path.exists(path):
        path = path.resolve()
        name = path.stem if path.suffix in (".py", ".json") else path.name
        if path.suffix in (".pth", ".safetensors"):
            name = f"{path.parent.name}/{name}"
    return name if checkpoint is None else f"{name} with {os.path.basename(checkpoint)}"


def info(mark: str) -> dict[str, str]:
    """Return the entry ``info``, the first of a COCO file with a mark."""
    return {"description": mark, "contributor": "dcnzoo"}


def sealed_info(mark: str) -> dict[str, str]:
    """:func:`info` of a file that is sealed when it is complete."""
    return {**info(mark), CHECKSUM: BLANK}


@contextlib.contextmanager
def _mapped(path: str | os.PathLike) -> Iterator[bytes | mmap.mmap]:
    """The content of a file, of which the system reads the parts that are used."""
    with open(path, "rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # an empty file; a file system without maps
            yield file.read()
            return
        with content:
            yield content


def seal(path: str | os.PathLike) -> None:
    """Write the checksum into a complete file that has a place for it."""
    with _mapped(path) as content, open(path, "r+b") as file:
        if match := _DIGEST.search(content):
            file.seek(match.start(1))
            file.write(_digest(content, match, Path(path)))
            file.flush()
            os.fsync(file.fileno())


def is_intact(path: str | os.PathLike) -> bool | None:
    """Whether a file has the content that was sealed; None if it has no checksum."""
    with _mapped(path) as content:
        match = _DIGEST.search(content)
        return _digest(content, match, Path(path)) == match[1] if match else None


def require_intact(path: str | os.PathLike) -> None:
    """Raise ValueError if an exported file has a checksum that does not fit its content."""
    if is_intact(path) is False:
        raise ValueError(
            f"{path}: expected the content that was exported: the file is damaged or was edited; open a file "
            "that you changed on purpose with dcnzoo.load(path, edited=True)"
        )


def _digest(content: bytes | mmap.mmap, place: re.Match, path: Path = Path()) -> bytes:
    """The checksum of a file, and of the weights of OpenVINO's IR, which are in another file."""
    start, end = place.span(1)
    rest = end + 4 if content[:4] == _PNG else end  # without PNG's own checksum of the text
    checksum, view = hashlib.sha256(), memoryview(content)
    checksum.update(view[:start])
    checksum.update(BLANK.encode())
    checksum.update(view[rest:])
    view.release()  # a map that is viewed cannot be closed
    if path.suffix == ".xml" and os.path.isfile(weights := path.with_suffix(".bin")):
        add_file(checksum, weights)
    return checksum.hexdigest().encode()


def is_own(path: str | os.PathLike, mark: str) -> bool:
    """Whether a file has a mark, and the content that was written with it."""
    return bool(mark) and mark_of(path) == mark and bool(is_intact(path))


def mark_of(path: str | os.PathLike) -> str:
    """Return the mark of a file; an empty text if it has none, or is no file."""
    try:
        if not os.path.isfile(path):  # a pipe would wait for its other end
            return ""
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        if match := _FIRST.search(head) or _JSON.search(head):
            return match[1].decode()
        if not (last := _LAST.get(Path(path).suffix)):
            return ""
        with _mapped(path) as content:
            match = _AT_END.search(content, max(0, len(content) - last))
            return match[1].decode() if match else ""
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


def config_of(name: str, text: str) -> str:
    """Return the text of a config that a training writes, with a mark for this file."""
    return add_mark(f"{PROGRAM}\n{text}".encode(), mark("config", name)).decode()


def is_config_of_training(path: Path) -> bool:
    """Whether a training wrote this config, which may have changed since; not a copy with another name."""
    return mark_of(path) == mark("config", path.name)


def add_mark(content: bytes, mark: str) -> bytes:
    """Return the content of a PNG, JPEG, page or config with a mark; other formats stay as they are."""
    blank = _with_text(content, _with_place(mark))
    match = _DIGEST.search(blank)
    return _with_text(content, _with_place(mark, _digest(blank, match))) if match else blank


def _with_place(mark: str, checksum: bytes = BLANK.encode()) -> bytes:
    return b"%b%b %b" % (entry(mark).encode(), CHECKSUM.encode(), checksum)


def _with_text(content: bytes, text: bytes) -> bytes:
    if content.startswith(PROGRAM.encode()):
        return PROGRAM.encode() + text + content[len(PROGRAM) :]
    if content[:4] == _PNG:  # after the header, which has 33 bytes
        chunk = b"tEXtdcnzoo\0" + text
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return content[:33] + chunk + content[33:]
    if content[:2] == b"\xff\xd8":  # after JFIF's segment, which must be the first
        place = 4 + int.from_bytes(content[4:6], "big") if content[2:4] == b"\xff\xe0" else 2
        text = b"dcnzoo: " + text
        return content[:place] + b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text + content[place:]
    page = b'<head>\n<meta name="dcnzoo" content="%b">' % text
    return content.replace(b"<head>", page, 1) if content[:15].lower() == b"<!doctype html>" else content


def append_mark(path: Path, mark: str) -> None:
    """Append a block with a mark to a video, or a comment to an archive; programs do not read them."""
    text = KEY.encode() + b" " + _with_place(mark)
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = text
    else:
        text += b" " * (len(text) % 2)
        head = struct.pack(">I", 8 + len(text)) + b"free"
        if path.suffix == ".avi":
            head = b"JUNK" + struct.pack("<I", len(text))
        with open(path, "ab") as file:
            file.write(head + text)
    seal(path)
