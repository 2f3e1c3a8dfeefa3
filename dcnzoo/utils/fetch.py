"""Downloads, which are verified by their checksums before they get their final name.

``DCNZOO_MIRROR``, ``PREFIX=REPLACEMENT`` or several separated by spaces, replaces the beginning of addresses.
``DCNZOO_OFFLINE=1`` allows no network access. Proxies are read from the environment, too.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
from rich.console import Console
from rich.progress import DownloadColumn, TransferSpeedColumn

from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import file_digest, replacing
from dcnzoo.utils.folders import cache_folder
from dcnzoo.utils.lock import locked
from dcnzoo.utils.progress import make_progress

_CHUNK = 1 << 18  # bytes
_DATE = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d\d){0,3}")  # 20210520, 20210520180434


class DownloadError(UserError):
    """A download failed. The message gives the reason."""


class ChecksumError(DownloadError):
    """A file does not have the expected checksum, or no checksum is known."""


def checksum_in_name(name: str) -> str | None:
    """Return the checksum in a name: ``sha256:d099253b`` for ``net-d099253b.pth``; None for a date."""
    match = re.search(r"-([0-9a-f]{8,64})\.[A-Za-z]+$", name)
    return f"sha256:{match[1]}" if match and not _DATE.fullmatch(match[1]) else None


def verify(path: str | os.PathLike, checksum: str | None = None, name: str = "") -> str:
    """Check that a file's checksum starts with ``checksum``, by default that in its name; return all of it.

    Raises:
        ChecksumError: the checksum differs, or none is known; the message has ``name``, by default the path.
    """
    checksum = checksum or checksum_in_name(Path(path).name)
    if checksum is None:
        raise ChecksumError(f"{path}: not checked: its name does not end in -<first digits of sha256>")
    found = f"{checksum.partition(':')[0]}:{file_digest(path, checksum.partition(':')[0])}"
    if not found.startswith(checksum):
        got = found[: len(checksum)]
        raise ChecksumError(f"{name or path}: expected {checksum}, got {got}: damaged, or another file")
    return found


def fetch(url: str, folder: str | os.PathLike | None = None, checksum: str | None = None) -> Path:
    """Download a file, unless it is in ``folder``; return its path. Other processes wait for the download.

    Args:
        folder: Default: torch's cache. There, a name without checksum begins with a hash of the address, so
            that two addresses are two files.
        checksum: as in :func:`verify`. A file with another checksum is an error.

    Raises:
        DownloadError: the download failed.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if urlsplit(url).scheme not in ("http", "https") or name in ("", ".."):
        raise DownloadError(f"{url}: expected the http:// or https:// address of a file")
    checksum = checksum or checksum_in_name(name)
    if folder is None and checksum is None:
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    target = Path(cache_folder() if folder is None else folder, name)
    if target.is_file():
        if checksum:
            verify(target, checksum)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock"), -1, remove=True):
        if not target.is_file():  # no other process has downloaded it
            _download(url, target, checksum)
    return target


def _download(url: str, target: Path, checksum: str | None) -> None:
    hint = f"; or download it elsewhere and put it at {target}"
    bar = make_progress(Console(stderr=True), DownloadColumn(), TransferSpeedColumn())
    with replacing(target) as partial, bar:
        with opened(url, hint) as response, open(partial, "wb") as file:
            total = int(response.headers.get("Content-Length", 0))
            task = bar.add_task(target.name, total=total or None, note="")
            for chunk in response.iter_content(_CHUNK):
                bar.advance(task, file.write(chunk))
        if total != (size := partial.stat().st_size) and total:
            raise DownloadError(f"{url}: expected {total:,} bytes, got {size:,}{hint}")
        if checksum:
            verify(partial, checksum, url)


@contextmanager
def opened(url: str, hint: str = "") -> Iterator[requests.Response]:
    """Context with the response of a server, whose errors become :class:`DownloadError` with a hint."""
    source = url
    for pair in os.environ.get("DCNZOO_MIRROR", "").split():
        prefix, _, replacement = pair.partition("=")
        if source == url and url.startswith(prefix):
            source = replacement + url.removeprefix(prefix)
    if os.environ.get("DCNZOO_OFFLINE", "0") not in ("", "0"):
        raise DownloadError(f"{source}: not downloaded: DCNZOO_OFFLINE is set{hint}")
    try:  # without compression, the length is that of the file
        headers = {"Accept-Encoding": "identity"}
        with requests.get(source, headers=headers, stream=True, timeout=(5, 30)) as response:
            response.raise_for_status()
            yield response
    except requests.RequestException as error:
        cause: BaseException | None = error  # the operating system's error, which requests wraps
        while cause and not getattr(cause, "strerror", None):
            cause = cause.__cause__ or cause.__context__
        reason = getattr(cause, "strerror", None) or one_line(error)
        raise DownloadError(f"{source}: {reason}{hint}") from error
