"""Files of the user: atomic writes, checks before files are written, and reading.

A command calls :func:`require_new` before its work. Afterwards it writes with :func:`replacing`, or with a
function that uses it: readers see the old file or the new one. :mod:`dcnzoo.utils.lock` has locks.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from dcnzoo.utils.errors import MissingFileError, UserError, disk_is_full, note, one_line
from dcnzoo.utils.text import few

Result = TypeVar("Result")
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.partial")  # the names of partial_of
_ABANDONED = 86400  # seconds without a write, after which a temporary file counts as abandoned


def expanded(path: str | os.PathLike) -> Path:
    """Return a path with ``~`` replaced by the home folder: for functions to which users pass paths."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Context with a temporary path in the same folder. At its end, that file or folder becomes ``path``.

    If the block raises, the temporary file is removed and ``path`` stays as it was. A file keeps its
    permissions. A link is replaced, not the file it points to, which may be anywhere. What a killed process
    has left in the folder is removed.

    Raises:
        UserError: the file cannot be written.
    """
    target = Path(path)
    partial = partial_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_once(os.path.abspath(target.parent))
        yield partial
        if target.is_file() and not target.is_symlink():
            with contextlib.suppress(OSError):  # not all file systems have permissions
                shutil.copymode(target, partial)
        os.replace(partial, target)
    except OSError as error:
        named = Path(error.filename or os.devnull)
        if not (disk_is_full(error) or named.is_relative_to(partial) or named in target.parents):
            raise  # about another file, such as one that the block reads
        raise _not_written(target, error) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # its folder may be missing
            partial.unlink()


def _not_written(target: str | os.PathLike, error: OSError) -> UserError:
    hint = ". The previous file is unchanged. Free some disk space" if disk_is_full(error) else ""
    return UserError(f"{target} cannot be written: {error.strerror or error}{hint}")


def partial_of(target: Path) -> Path:
    """Return a temporary name in the same folder.

    The name is random: a fixed one could be a link, and two processes may write the same file. It does not
    contain the file's name, which may have the maximum length.
    """
    name = f".{secrets.token_hex(8)}.{secrets.token_hex(8)}.partial{target.suffix[:9]}"
    return target.with_name(name)


@contextlib.contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """Context with a temporary folder. What a killed process leaves of it, a later call removes."""
    _remove_abandoned_once(os.path.abspath(parent))
    folder = partial_of(parent / "folder")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Like :func:`replacing`, but yields the open file, and waits until it is on the disk."""
    with replacing(path) as partial, open(partial, "wb") as file:
        yield file
        try:
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise _not_written(path, error) from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replace the file's content. Raises UserError if it cannot be written; the previous content stays."""
    with writing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """:func:`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return the checksum of a file of any size, in hex digits; at most a megabyte of it is in memory."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


# Temporary files of killed commands


def remove_abandoned(folder: Path, seconds: float = _ABANDONED, ending: str = "*") -> None:
    """Remove temporary files and folders of killed commands, to which nothing was written for so long.

    Args:
        ending: that of the files, such as ``.pth``.
    """
    for partial in folder.glob(f".*.partial{ending}"):
        with contextlib.suppress(OSError):
            is_folder = partial.is_dir() and not partial.is_symlink()
            parts = (partial, *(partial.rglob("*") if is_folder else ()))
            written = max(part.lstat().st_mtime for part in parts)
            if not _PARTIAL.match(partial.name) or written > time.time() - seconds:
                continue
            if is_folder:
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink()


@functools.cache  # once per folder: listing one with 100,000 texts takes longer than writing a text
def _remove_abandoned_once(folder: str) -> None:
    remove_abandoned(Path(folder))


# Checks before a command writes: a file that exists is refused


def require_new(
    command: str,
    *names: str | os.PathLike,
    force: bool = False,
    inputs: Iterable[str] = (),
) -> Path:
    """Check the names of output files before the work starts; return the first one, :func:`expanded`.

    Args:
        force: files that exist may be replaced.
        inputs: files that are read. An output with the folder and the stem of an input is refused.

    Raises:
        UserError: a file exists, or its folder cannot be written.
    """
    files = [*map(expanded, names)]
    for folder in {file.parent for file in files}:
        require_writable(folder)
    sources = {_without_ending(source) for source in inputs}
    existing = []
    for file in files:
        if _without_ending(file) in sources:
            raise UserError(f"{command}: {file}: expected another folder than the input's, got the same")
        if file.is_dir() or file.is_symlink():
            problem = "the folder" if file.is_dir() else f"a link to {os.readlink(file)}"
            raise UserError(f"{command}: {file}: expected a file, got {problem}")
        if os.path.lexists(file) and not force:
            existing.append(file)
    if existing:
        got = few(existing, 3) if len(existing) > 1 else existing[0]
        raise UserError(f"{command}: expected a new file, got {got}; force=True replaces it")
    return files[0]


def _without_ending(path: str | os.PathLike) -> tuple[str, str]:
    return os.path.realpath(Path(path).parent), Path(path).stem


def require_writable(folder: str | os.PathLike) -> None:
    """Raise UserError unless files can be written to a folder, or it can be created."""
    parents = (Path(folder), *Path(folder).absolute().parents)
    existing = next(part for part in parents if os.path.lexists(part))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error


def numbered(path: Path, usable: Callable[[Path], bool] = lambda path: False) -> Path:
    """Return the first of ``path``, ``path_2``, … that does not exist or is usable; ``report_2.html``."""
    number, free = 2, path
    while os.path.lexists(free) and not usable(free):
        free = path.with_stem(f"{path.stem}_{number}")
        number += 1
    return free


# Reading


def files_beside(folder: Path, pattern: str) -> list[Path]:
    """List files by a pattern, without folders, pipes and broken links."""
    return [path for path in folder.glob(pattern) if path.is_file()]


def read_beside(path: Path, parse: Callable[[str], Result] = str) -> Result | None:  # type: ignore[assignment]
    """Return the parsed content of a file; None if it does not exist or, with a warning, if it is damaged.

    Args:
        parse: reads the text. ValueError, TypeError, LookupError and AttributeError mean that it is damaged.
    """
    if not path.is_file():  # or if it is a pipe: reading it would wait for its other end
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        note(f"{path}: not used: {one_line(error)}")
        return None


def require_file(path: str, what: str) -> None:
    """Raise UserError unless ``path`` is a local file. Addresses with a scheme are not checked."""
    file = os.path.expanduser(path)
    if not path or os.path.isdir(file):
        raise UserError(f"{what}: expected a file, got {f'the folder {path}' if path else 'an empty text'}")
    if "://" not in path and not os.path.isfile(file):  # or if it is a pipe, which blocks its reader
        raise MissingFileError(f"{what}: expected a file, found none at {path}")


def require_exists(path: str | os.PathLike, what: str) -> None:
    """Raise UserError unless there is a folder or file at ``path``."""
    if not os.path.exists(path):
        raise MissingFileError(f"{what}: expected a folder or file, found none at {path}")
