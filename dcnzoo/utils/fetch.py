"""Downloads that resume after an interruption and are verified before they get their final name.

A download is called ``NAME.part`` until it is complete and its checksum is correct. ``NAME.part.tag`` stores
the version of the file that the part belongs to. In the cache, two addresses without a checksum are two
files: the name of each contains a hash of its address.

Environment variables:
    TORCH_HOME       folder of torch's cache: downloads go to ``$TORCH_HOME/hub/checkpoints``
    DCNZOO_MIRROR    ``PREFIX=REPLACEMENT``, or several separated by spaces: replaces PREFIX at the
                     beginning of addresses
    DCNZOO_OFFLINE   1: no network access; a file that was not downloaded before is an error

Proxies are read from the environment too (``HTTPS_PROXY`` and others).
"""

import hashlib
import os
import re
import time
from http import HTTPStatus
from http.client import IncompleteRead
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from dcnzoo.utils.checksums import file_digest
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.folders import cache_folder
from dcnzoo.utils.lock import locked
from dcnzoo.utils.progress import make_progress

MIRROR = "DCNZOO_MIRROR"
OFFLINE = "DCNZOO_OFFLINE"

_CHUNK = 1 << 16  # bytes; the most that is lost when a connection breaks
_RETRIES = 3  # attempts after one that received no data
_CONNECT = 5.0  # seconds to establish a connection
_TIMEOUT = 30.0  # seconds without data after which an attempt fails
_TOTAL = 300.0  # seconds for a picture
_BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
_DATE = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d\d){0,3}")  # 20210520, 20210520180434
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class DownloadError(UserError):
    """A download failed. The message gives the reason."""


class ChecksumError(DownloadError):
    """A file does not have the expected checksum, or no checksum is known."""


# Checksums


def checksum_in_name(name: str) -> str | None:
    """The checksum in a file name of OpenMMLab or torch: ``sha256:d099253b`` in ``…_20200130-d099253b.pth``.

    None if the name has no checksum. A date, with or without a time, is not a checksum:
    ``mine-20210101.pth``.
    """
    match = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z]+$", name)
    return f"sha256:{match[1]}" if match and not _DATE.fullmatch(match[1]) else None


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
    digits = file_digest(path, algorithm).hexdigest()
    if not digits.startswith(expected):
        raise ChecksumError(f"{path}: expected {algorithm} {expected}, found {digits[: len(expected)]}")
    return f"{algorithm}:{digits}"


# Downloading


def fetch_bytes(url: str, limit: int) -> bytes:
    """Return the content of an address, which is not stored.

    Raises:
        DownloadError: the download failed, no data arrived for 30 seconds, it took more than five minutes,
            or there are more than ``limit`` bytes.
    """
    source, content = _mirrored(url), bytearray()
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: expected an http:// or https:// address")
    if _is_offline():
        raise DownloadError(f"{url}: not downloaded: {OFFLINE} is set")
    start = time.monotonic()
    try:
        with requests.get(source, stream=True, timeout=(_CONNECT, _TIMEOUT)) as response:
            response.raise_for_status()
            # read1 returns what has arrived; iter_content waits for a whole chunk, however slow it comes
            read = getattr(response.raw, "read1", response.raw.read)
            while chunk := read(_CHUNK, decode_content=True):
                content += chunk
                if len(content) > limit:
                    raise DownloadError(f"{source}: expected at most {decimal(limit)}, got more")
                if time.monotonic() - start > _TOTAL:
                    raise DownloadError(
                        f"{source}: expected all in {_TOTAL:g} seconds, got {len(content)} bytes"
                    )
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise DownloadError(f"{source}: {_reason(error)}") from error
    return bytes(content)


def name_of(url: str) -> str:
    """Return the name of the file at an address."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


def name_in_cache(url: str) -> str:
    """Return the name of a download in the cache: it contains a checksum, or a hash of the address."""
    name = name_of(url)
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
    if (checksum_in_name(name) and plain == name and len(name) < 200) or name in ("", ".."):
        return name
    digest = hashlib.sha256(url.partition("#")[0].encode()).hexdigest()[:16]
    return f"{PurePosixPath(plain).stem[:80]}.{digest}{PurePosixPath(plain).suffix[:20]}"


def fetch(
    url: str, folder: str | os.PathLike | None = None, checksum: str | None = None, name: str | None = None
) -> Path:
    """The path of a file, which is downloaded unless it is in ``folder`` already.

    Several processes can fetch the same file: one downloads it, the others wait.

    Args:
        folder: Default: :func:`cache_folder`.
        checksum: as in :func:`verify`. A file with another checksum is rejected.
        name: of the file. Default: its name at the address, in the cache that of :func:`name_in_cache`.

    Raises:
        DownloadError: the download failed. The message has one line: the address, the reason and, where it
            helps, the path to which you can copy the file.
    """
    name = name or (name_in_cache(url) if folder is None else name_of(url))
    if urlsplit(url).scheme not in ("http", "https") or name in ("", ".."):
        raise DownloadError(f"{url}: expected the http:// or https:// address of a file")
    folder = cache_folder() if folder is None else Path(folder)
    target = folder / name
    checksum = checksum or checksum_in_name(name) or checksum_in_name(name_of(url))
    if _is_intact(target, checksum):
        return target
    if _is_offline():
        raise DownloadError(
            f"{url}: expected {name} in {folder}, found no intact one, and {OFFLINE} is set; "
            "you can download it elsewhere and put it there"
        )
    source, part = _mirrored(url), folder / f"{name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    lock = folder / f".{name}.lock"
    with locked(lock, -1):
        if not _is_intact(target, checksum):  # no other process has downloaded it
            if target.exists():
                console.print(f"{target} has the wrong checksum; renamed to {_set_aside(target, name)}")
            try:
                _download(source, part, console)
            except requests.RequestException as error:
                size = _size(part)
                kept = f"; {decimal(size)} downloaded so far; the next call continues" if size else ""
                hint = f"you can download it elsewhere and put it at {target}"
                raise DownloadError(f"{source}: {_reason(error)}{kept}; {hint}") from error
            _tag_of(part).unlink(missing_ok=True)
            if not _size(part):
                part.unlink()
                raise DownloadError(f"{source}: expected a file, got an empty answer")
            try:
                if checksum is not None:
                    verify(part, checksum)
            except ChecksumError as error:
                why = str(error).partition(": ")[2]
                raise ChecksumError(f"{source}: {why}; renamed to {_set_aside(part, name)}") from None
            part.replace(target)
        # Processes that wait for this lock will find the download. After a failure the lock file must stay:
        # one of them will start to download, and later processes must wait for the same lock.
        lock.unlink(missing_ok=True)
    return target


def _is_offline() -> bool:
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def _is_intact(target: Path, checksum: str | None) -> bool:
    try:
        return target.is_file() and (checksum is None or bool(verify(target, checksum)))
    except ChecksumError:
        return False


def _set_aside(path: Path, name: str) -> Path:
    """Rename a file with a wrong checksum, so that nothing uses it or continues its download."""
    aside = path.with_name(f"{name}.refused")
    path.replace(aside)
    return aside


def _mirrored(url: str) -> str:
    for pair in os.environ.get(MIRROR, "").split():
        prefix, equals, replacement = pair.partition("=")
        if not (prefix and equals and replacement):
            raise DownloadError(f"{MIRROR}: expected PREFIX=REPLACEMENT, got {pair}")
        if url.startswith(prefix):
            return replacement + url.removeprefix(prefix)
    return url


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _download(url: str, part: Path, console: Console) -> None:
    """Download to ``part``, and continue it after interruptions if the server names the file's version."""
    bar = make_progress(console, DownloadColumn(), TransferSpeedColumn())
    failures, reached = 0, False
    with requests.Session() as session, bar:
        task = bar.add_task(part.stem, total=None, note="")
        while True:
            before = _size(part)
            try:
                return _attempt(session, url, part, bar, task)
            except requests.RequestException as error:
                status = None if error.response is None else error.response.status_code
                received = _size(part) > before
                failures = 1 if received else failures + 1
                reached = reached or received or not isinstance(error, requests.ConnectionError)
                again = isinstance(error, _LOST) or status in _TRY_AGAIN
                # without any connection there may be no network
                if not again or failures > (_RETRIES if reached else 1):
                    raise
            time.sleep(_BACKOFF * 2 ** (failures - 1))


def _attempt(session, url: str, part: Path, bar: Progress, task) -> None:
    """Make one request. Append to ``part``, or rewrite it if the download cannot be resumed."""
    tag, have = _tag_of(part), _size(part)
    version = tag.read_text() if tag.exists() else ""
    headers = {"Accept-Encoding": "identity"}  # no compression: ranges count the bytes of the file
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=(_CONNECT, _TIMEOUT)) as response:
        status, found = response.status_code, response.headers.get("Content-Range", "")
        beyond = status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        if have and beyond and found == f"bytes */{have}":
            return  # the part is complete
        if beyond or (status == HTTPStatus.PARTIAL_CONTENT and not found.startswith(f"bytes {have}-")):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the server cannot resume the download")
        response.raise_for_status()
        if status != HTTPStatus.PARTIAL_CONTENT:  # no range support, or the file has changed
            have, etag = 0, response.headers.get("ETag", "W/")
            # If-Range does not allow a weak ETag
            tag.write_text(response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag)
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        bar.update(task, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise requests.ConnectionError(f"expected {decimal(total)}, got {decimal(_size(part))}")


def _reason(error: BaseException) -> str:
    """The operating system's message, which requests and urllib3 wrap in their exceptions."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, IncompleteRead):
            return "the connection broke off"
        cause = cause.__cause__ or cause.__context__
    return one_line(error)
