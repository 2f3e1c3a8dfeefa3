"""Atomic writes: a file is written completely or not at all. And names of files, and reading large files."""

import contextlib
import gc
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dcnzoo.utils.errors import UserError, disk_is_full


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path in the same folder. When the block ends, that file or folder becomes ``path``.

    If the block raises, the temporary file is removed and ``path`` stays as it was.

    Raises:
        UserError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        hint = ". The previous file is unchanged. Free some disk space" if disk_is_full(error) else ""
        raise UserError(f"{target} cannot be written: {error.strerror or error}{hint}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # its folder may be missing
            partial.unlink()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replace the file's content and wait until it is on the disk.

    Raises:
        UserError: the file cannot be written; the previous content stays.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike, text: str) -> None:
    """:func:`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def require_file(path: str, what: str) -> None:
    """Raise UserError unless ``path`` is a local file. Addresses with a scheme are not checked."""
    file = Path(path).expanduser()
    if "://" not in path and not os.path.isfile(file):  # Path.is_file raises if the name is too long
        problem = "got the folder" if os.path.isdir(file) else "found none at"
        raise UserError(f"{what}: expected a file, {problem} {path}")


def require_folder(path: str | os.PathLike, what: str) -> None:
    """Raise UserError if the path, or a part of it, is a file."""
    existing = next((part for part in (Path(path), *Path(path).parents) if part.exists()), None)
    if existing is not None and not existing.is_dir():
        raise UserError(f"{what}: expected a folder, got {path}: {existing} is a file")


CHECKPOINTS = ("best", "last")  # of a work directory, in place of a file
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def picture_files(name: str | os.PathLike) -> list[str] | None:
    """List the pictures of a folder, or the files of a pattern such as ``street/*.jpg``; None for a file.

    Raises:
        UserError: there are none.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in PICTURES)
    elif any(letter in str(name) for letter in "*?[") and not path.exists():
        files = sorted(glob.glob(str(name), recursive=True))
    else:
        return None
    if not files:
        raise UserError(f"image: expected pictures, found none in {name}")
    return files


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector, which takes a quarter of the time in which a large file is read."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
