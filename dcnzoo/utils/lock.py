"""Locks: one training at a time in a work directory, one writer of a file."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dcnzoo.utils.errors import UserError, note
from dcnzoo.utils.files import read_beside, write_text

LOCK = ".training.lock"  # in the folder
OWNER = ".training.txt"  # beside LOCK: a text that names the process that trains
_ORPHANS_END = 6  # seconds; data-loading processes notice within five that their parent has died
_SILENCE = 1  # seconds of waiting, after which a message is printed
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, seconds: float = 0, remove: bool = False) -> Iterator[None]:
    """Context that holds a lock file. The operating system releases the lock of a dead process.

    On a file system without locks, such as NFS without lockd, a message says so, and nothing is locked.

    Args:
        seconds: to wait for another holder; -1: without end.
        remove: remove the lock file at the end.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: the file cannot be written.
    """
    lock = FileLock(path)
    try:
        _acquire(lock, seconds, f"waiting for another process, which holds {path}")
    except (OSError, NotImplementedError) as error:  # a Timeout, too, is an OSError, without an errno
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        note(f"{path.parent}: the file system has no locks: nothing is locked")
    try:
        yield
    finally:
        if remove and os.name != "nt":  # Windows removes no open file; there, filelock removes it afterwards
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, seconds: float, text: str) -> None:
    """Wait for a lock, -1: without end; print the text after a second."""
    silence = _SILENCE if seconds == -1 else min(seconds, _SILENCE)
    try:
        lock.acquire(timeout=silence)
    except Timeout:
        if seconds == silence:
            raise
        note(text)
        lock.acquire(timeout=-1 if seconds == -1 else seconds - silence)


@contextmanager
def lock_work_dir(folder: str | os.PathLike) -> Iterator[None]:
    """Context that creates a folder and locks it for one training. At the end, it removes an empty folder.

    Raises:
        UserError: another process trains in this folder, or it cannot be written.
    """
    folder = Path(folder)
    owner = folder / OWNER
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, new)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / LOCK, _ORPHANS_END, remove=True))
        except Timeout:
            raise _in_use(folder) from None
        except OSError as error:
            raise UserError(f"work_dir: {folder} cannot be written: {error.strerror or error}") from error
        stack.callback(owner.unlink, missing_ok=True)
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        yield


def rename_locked(lock: ExitStack, folder: Path, target: Path) -> None:
    """Rename a folder that this process holds by ``lock``, and delete its lock files.

    Args:
        lock: the contexts to leave, among them :func:`lock_work_dir` of the folder. Windows renames no folder
            with an open file: there, they are left first.

    Raises:
        UserError: on Windows, another process has locked the folder since.
    """
    if os.name == "nt":
        lock.close()
    try:
        os.rename(folder, target)
    except PermissionError:
        if os.name == "nt":
            raise _in_use(folder) from None
        raise
    for name in (LOCK, OWNER):
        (target / name).unlink(missing_ok=True)


def _in_use(folder: Path) -> UserError:
    process = read_beside(folder / OWNER) or "another process"
    return UserError(
        f"work_dir: expected a folder without a running training, got {folder}, used by {process} "
        f"({folder / LOCK}); use another folder, or wait until it ends"
    )


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # stops at the first folder that has files
        for folder in folders:
            folder.rmdir()
