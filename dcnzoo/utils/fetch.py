"""Downloads that resume after an interruption and are verified before they get their final name.

A download is called ``NAME.part`` until it is complete and its checksum is correct. ``NAME.part.tag`` stores
the version of the file that the part belongs to.

Environment variables:
    TORCH_HOME       folder of torch's cache: downloads go to ``$TORCH_HOME/hub/checkpoints``
    DCNZOO_MIRROR    ``PREFIX=REPLACEMENT``, or several separated by spaces: replaces PREFIX at the
                     beginning of addresses
    DCNZOO_OFFLINE   1: no network access; a file that was not downloaded before is an error

Proxies are read from the environment too (``HTTPS_PROXY`` and others).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.progress import make_progress

MIRROR = "DCNZOO_MIRROR"
OFFLINE = "DCNZOO_OFFLINE"

_CHUNK = 1 << 16  # bytes; the most that is lost when a connection breaks
_CONNECT = 5.0  # seconds to establish a connection
_BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
_DATE = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d\d){0,3}")  # 20210520, 20210520180434
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(UserError):
    """A download failed. The message gives the reason."""


class ChecksumError(DownloadError):
    """A file does not have the expected checksum, or no checksum is known."""


class _NoRoom(DownloadError):
    """The disk has too little space for the file."""


class _BrokenOff(Exception):
    """The connection broke, or the server failed temporarily. Another attempt may succeed."""


class _NoConnection(_BrokenOff):
    """No connection to the server."""


def cache_folder() -> Path:
    """The folder in which torch.hub stores checkpoints, so that torch and dcnzoo share downloads."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


# Checksums


def checksum_in_name(name: str) -> str | None:
    """The checksum in a file name of OpenMMLab or torch: ``sha256:d099253b`` in ``…_20200130-d099253b.pth``.

    None if the name has no checksum. A date, with or without a time, is not a checksum:
    ``mine-20210101.pth``.
    """
    found = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z]+$", name)
    return f"sha256:{found[1]}" if found and not _DATE.fullmatch(found[1]) else None


def verify(path: str | os.PathLike, checksum: str | None = None) -> str:
    """Compare a file with a checksum.

    Args:
        checksum: algorithm, colon, and all or the first hex digits. Default: the checksum in the file's
            name.

    Returns:
        The file's full checksum, in the same form.

    Raises:
        ChecksumError: the checksum differs, or none is known.
    """
    path = Path(path)
    checksum = checksum or checksum_in_name(path.name)
    if checksum is None:
        raise ChecksumError(f"{path}: not checked: its name does not end in -<first digits of sha256>")
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    if not digest.hexdigest().startswith(expected):
        found = digest.hexdigest()[: len(expected)]
        raise ChecksumError(f"{path}: expected {algorithm} {expected}, found {found}")
    return f"{algorithm}:{digest.hexdigest()}"


def _set_aside(path: Path, name: str) -> Path:
    """Rename a file with a wrong checksum, so that nothing uses it or continues its download."""
    aside = path.with_name(f"{name}.refused")
    path.replace(aside)
    return aside


# Downloading


def fetch(
    url: str,
    folder: str | os.PathLike | None = None,
    *,
    checksum: str | None = None,
    retries: int = 3,
    timeout: float = 30.0,
    console: Console | None = None,
) -> Path:
    """The path of a file, which is downloaded unless it is in ``folder`` already.

    Several processes can fetch the same file: one downloads it, the others wait.

    Args:
        folder: Default: :func:`cache_folder`.
        checksum: as in :func:`verify`. A file with another checksum is rejected.
        retries: number of attempts after one that received no data. Each attempt continues the download. At
            most one if no connection was established yet, because there may be no network.
        timeout: seconds without data after which an attempt fails.
        console: terminal for the progress bar. Default: stderr.

    Raises:
        DownloadError: the download failed. The message has one line: the address, the reason and, where it
            helps, the path to which you can copy the file.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if urlsplit(url).scheme not in ("http", "https") or name in ("", ".."):
        raise DownloadError(f"{url}: expected the http:// or https:// address of a file")
    console = console or Console(stderr=True)
    folder = cache_folder() if folder is None else Path(folder)
    target = folder / name
    checksum = checksum or checksum_in_name(name)
    if _is_there(target, checksum):
        return target
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise DownloadError(
            f"{url}: expected {name} in {folder}, found no intact one, and {OFFLINE} is set; "
            "you can download it elsewhere and put it there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(target, console):
        if _is_there(target, checksum):  # another process was faster
            return target
        if target.exists():
            console.print(f"{target} has the wrong checksum; renamed to {_set_aside(target, name)}")
        part = folder / f"{name}.part"
        source = _mirrored(url)
        try:
            _download(source, part, checksum is not None, retries, timeout, console)
        except _NoRoom:
            raise
        except DownloadError as error:
            raise DownloadError(f"{error}; you can download it elsewhere and put it at {target}") from error
        _tag_of(part).unlink(missing_ok=True)
        if checksum is not None:
            try:
                verify(part, checksum)
            except ChecksumError as error:
                why = str(error).partition(": ")[2]
                raise ChecksumError(f"{source}: {why}; renamed to {_set_aside(part, name)}") from None
        part.replace(target)
    return target


def _is_there(target: Path, checksum: str | None) -> bool:
    if not target.is_file():
        return False
    try:
        return checksum is None or bool(verify(target, checksum))
    except ChecksumError:
        return False


def _mirrored(url: str) -> str:
    for pair in os.environ.get(MIRROR, "").split():
        prefix, equals, replacement = pair.partition("=")
        if not (prefix and equals and replacement):
            raise DownloadError(f"{MIRROR}: expected PREFIX=REPLACEMENT, got {pair}")
        if url.startswith(prefix):
            return replacement + url.removeprefix(prefix)
    return url


@contextmanager
def _only_one(target: Path, console: Console) -> Iterator[None]:
    """Context that only one process at a time enters for a file."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.print(f"waiting: another process downloads {target.name}")
        lock.acquire()
    try:
        yield
        # Processes that wait for this lock will find the download. After a failure the lock file must stay:
        # one of them will start to download, and later processes must wait for the same lock.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(url: str, part: Path, checked: bool, retries: int, timeout: float, console: Console) -> None:
    """Complete ``part``.

    Args:
        checked: whether a checksum will detect a mixture of two versions of the file.
    """
    bar = make_progress(console, DownloadColumn(), TransferSpeedColumn(), disable=not console.is_terminal)
    failures, reached = 0, False
    with requests.Session() as session, bar:
        task = bar.add_task(part.stem, total=None, note="")
        while True:
            before = _size(part)
            try:
                _attempt(session, url, part, checked, timeout, bar, task)
                return
            except _BrokenOff as error:
                problem = str(error)
                reached = reached or not isinstance(error, _NoConnection)
            except requests.RequestException as error:
                raise DownloadError(f"{url}: {one_line(error)}") from error
            failures = 1 if _size(part) > before else failures + 1
            if failures > (retries if reached else min(retries, 1)):
                size = _size(part)
                kept = f"; {decimal(size)} downloaded so far; the next call continues" if size else ""
                times = f", after {failures} attempts" if failures > 1 else ""
                raise DownloadError(f"{url}: {problem}{times}{kept}")
            time.sleep(_BACKOFF * 2 ** (failures - 1))


def _attempt(session, url: str, part: Path, checked: bool, timeout: float, bar: Progress, task) -> None:
    """Make one request. Append to ``part``, or rewrite it if the download cannot be resumed."""
    tag = _tag_of(part)
    version = tag.read_text() if tag.exists() else None
    headers = {"Accept-Encoding": "identity"}  # no compression: ranges count the bytes of the file
    have = _size(part)
    if have and (version or checked):
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(min(timeout, _CONNECT), timeout))
    except requests.ReadTimeout:
        raise _BrokenOff(f"no response within {timeout:g} s") from None
    except requests.ConnectionError as error:
        raise _NoConnection(f"no connection: {_reason(error)}") from None
    with response:
        status = response.status_code
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        total = int(found[2]) if found and found[2] != "*" else None
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and total == have > 0:
            return  # the part was complete already
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or (
            status == HTTPStatus.PARTIAL_CONTENT and (not found or found[1] != str(have))
        ):
            part.unlink(missing_ok=True)
            raise _BrokenOff("the server cannot resume the download")
        if status == HTTPStatus.OK:  # from the beginning: no range support, or the file has changed
            have = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            _remember_version(tag, response.headers)
        elif status != HTTPStatus.PARTIAL_CONTENT:
            text = f"the server returned {status} ({response.reason or 'no reason given'})"
            raise _BrokenOff(text) if status in _TRY_AGAIN else DownloadError(f"{url}: {text}")
        missing = (total or 0) - have
        if missing > (free := shutil.disk_usage(part.parent).free):
            raise _NoRoom(
                f"{url}: {part.parent}: expected {decimal(missing)} of free space, got {decimal(free)}"
            )
        bar.update(task, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            try:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
            except requests.RequestException as error:
                stalled = any(isinstance(cause, urllib3.exceptions.ReadTimeoutError) for cause in error.args)
                raise _BrokenOff(
                    f"no data for {timeout:g} s" if stalled else "the connection broke"
                ) from None
            finally:
                file.flush()
                os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise _BrokenOff(f"the connection broke at {decimal(_size(part))} of {decimal(total)}")


def _remember_version(tag: Path, headers) -> None:
    """Store the version for the If-Range header of a later request, which does not allow a weak ETag."""
    etag = headers.get("ETag", "")
    version = headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag
    if version:
        tag.write_text(version)
    else:
        tag.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The operating system's message, which requests and urllib3 wrap in their exceptions."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error)
