"""Downloads that may break at any point: they go on where they stopped, are checked, then renamed.

A file has its name only when it is complete and its checksum is right. Until then it is ``NAME.part``
(with ``NAME.part.tag``, which says what version of the file it is a part of).

Environment:
    TORCH_HOME       where torch's cache is: downloads go to ``$TORCH_HOME/hub/checkpoints``
    DCNZOO_MIRROR    ``PREFIX=REPLACEMENT``, several with spaces between: addresses that begin with
                     PREFIX begin with REPLACEMENT instead
    DCNZOO_OFFLINE   1: what is not there yet is an error; nothing is asked of the network

Proxies are taken from the environment too (``HTTPS_PROXY`` and so on).
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

_CHUNK = 1 << 16  # bytes; what is at most lost when a connection breaks
_CONNECT = 5.0  # seconds in which a connection has to be made
_BACKOFF = 1.0  # seconds before the second attempt; doubles with each further one
_DATE = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d\d){0,3}")  # 20210520, 20210520180434
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class DownloadError(UserError):
    """A file could not be had, and why."""


class ChecksumError(DownloadError):
    """A file is not what it should be."""


class _NoRoom(DownloadError):
    """The disk is too full for the file."""


class _BrokenOff(Exception):
    """The connection, or the server for the moment; another attempt may go on."""


class _NoConnection(_BrokenOff):
    """The server is not reached at all."""


def cache_folder() -> Path:
    """Where torch.hub keeps checkpoints, so that what one has downloaded the other finds."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


# Checksums


def checksum_in_name(name: str) -> str | None:
    """``sha256:d099253b`` of ``…_20200130-d099253b.pth``, as OpenMMLab and torch name their files.

    A date, with or without a time, is no checksum: ``mine-20210101.pth``.
    """
    found = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z]+$", name)
    return f"sha256:{found[1]}" if found and not _DATE.fullmatch(found[1]) else None


def verify(path: str | os.PathLike, checksum: str | None = None) -> str:
    """Compare a file with a checksum.

    Args:
        checksum: algorithm, colon, and the hex digits or the first of them; by default the one in
            the file's name.

    Returns:
        The file's whole checksum, in the same form.

    Raises:
        ChecksumError: it is another, or none is known.
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
    """Renames a file that was refused; nothing takes it for the right one or goes on with it."""
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
    """The file at an address, downloaded if it is not in ``folder`` yet.

    Several processes may ask for the same file: one downloads it, the others wait.

    Args:
        folder: default: :func:`cache_folder`.
        checksum: as for :func:`verify`; a file is refused that has another.
        retries: attempts after one that brought nothing; what was there already is not asked for again.
            One at most while the server has not been reached: there may be no network.
        timeout: seconds without a byte after which an attempt has failed.
        console: where a bar is drawn if it is a terminal (default: stderr).

    Raises:
        DownloadError: in one line: the address, what went wrong, and where to put the file by hand.
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
            console.print(f"{target} is not what it should be; kept as {_set_aside(target, name)}")
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
                raise ChecksumError(f"{source}: {why}; kept as {_set_aside(part, name)}") from None
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
    """Inside is one process at a time, for each file."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.print(f"waiting: another process downloads {target.name}")
        lock.acquire()
    try:
        yield
        # Others that wait for this very lock will find the file. After a failure it has to stay: one
        # of them will begin, and who comes later must see that.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(url: str, part: Path, checked: bool, retries: int, timeout: float, console: Console) -> None:
    """Completes ``part``; ``checked``: a mixture of two versions of the file would be found out."""
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
                kept = f"; {decimal(_size(part))} are kept, the next call goes on" if _size(part) else ""
                times = f", {failures} times in a row" if failures > 1 else ""
                raise DownloadError(f"{url}: {problem}{times}{kept}")
            time.sleep(_BACKOFF * 2 ** (failures - 1))


def _attempt(session, url: str, part: Path, checked: bool, timeout: float, bar: Progress, task) -> None:
    """One request. Appends to ``part``, or writes it anew where it cannot be gone on with."""
    tag = _tag_of(part)
    version = tag.read_text() if tag.exists() else None
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file: a range counts these
    have = _size(part)
    if have and (version or checked):
        headers["Range"] = f"bytes={have}-"
        if version:
            headers["If-Range"] = version
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(min(timeout, _CONNECT), timeout))
    except requests.ReadTimeout:
        raise _BrokenOff(f"no answer within {timeout:g} s") from None
    except requests.ConnectionError as error:
        raise _NoConnection(f"no connection: {_reason(error)}") from None
    with response:
        status = response.status_code
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        total = int(found[2]) if found and found[2] != "*" else None
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and total == have > 0:
            return  # all of it was there
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or (
            status == HTTPStatus.PARTIAL_CONTENT and (not found or found[1] != str(have))
        ):
            part.unlink(missing_ok=True)
            raise _BrokenOff("the server does not have the rest of the file")
        if status == HTTPStatus.OK:  # from the beginning: no ranges here, or the file is another one
            have = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            _remember_version(tag, response.headers)
        elif status != HTTPStatus.PARTIAL_CONTENT:
            text = f"the server answered {status} ({response.reason or 'no reason given'})"
            raise _BrokenOff(text) if status in _TRY_AGAIN else DownloadError(f"{url}: {text}")
        missing = (total or 0) - have
        if missing > (free := shutil.disk_usage(part.parent).free):
            raise _NoRoom(f"{url}: {decimal(missing)} to come, {decimal(free)} free at {part.parent}")
        bar.update(task, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            try:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
            except requests.RequestException as error:
                stalled = any(isinstance(cause, urllib3.exceptions.ReadTimeoutError) for cause in error.args)
                raise _BrokenOff(
                    f"nothing came for {timeout:g} s" if stalled else "the connection broke"
                ) from None
            finally:
                file.flush()
                os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise _BrokenOff(f"the connection broke at {decimal(_size(part))} of {decimal(total)}")


def _remember_version(tag: Path, headers) -> None:
    """What a later request is to be compared with (If-Range): a weak ETag does not do."""
    etag = headers.get("ETag", "")
    version = headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag
    if version:
        tag.write_text(version)
    else:
        tag.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The system's word on it, from inside the wrappings of requests and urllib3."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error)
