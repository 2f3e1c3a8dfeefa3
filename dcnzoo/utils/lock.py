"""Locks: one training at a time in a work directory, one writer of a file."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, SoftFileLock, Timeout

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import note, read_beside, write_text

OWNER = ".training.txt"  # in the folder: the process that trains
_ORPHANS_END = 6  # seconds; data-loading processes notice within five that their parent has died
_SILENCE = 1  # seconds of waiting, after which a line says so
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, seconds: float = 0) -> Iterator[None]:
    """Context that holds a lock file. The operating system releases the lock of a dead process.

    On a file system without locks, such as NFS without lockd, a file beside it says who holds it, and a line
    says so. The file of a dead process is replaced on its own machine; on others, it must be deleted.

    Args:
        seconds: to wait for another holder; -1: without end.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: the file cannot be written.
    """
    try:
        lock = _acquire(FileLock(path), seconds)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:  # also Timeout
            raise
        soft = path.with_name(f"{path.name}.soft")
        note(f"{path.parent}: the file system has no locks; the file {soft.name} takes their place")
        lock = _acquire(SoftFileLock(soft), seconds)
    with lock:
        yield


def _acquire(lock: BaseFileLock, seconds: float) -> AcquireReturnProxy:
    try:
        return lock.acquire(timeout=seconds if 0 <= seconds <= _SILENCE else _SILENCE)
    except Timeout:
        if 0 <= seconds <= _SILENCE:
            raise
    note(f"waiting for another process, which holds {lock.lock_file}")
    return lock.acquire(timeout=max(seconds - _SILENCE, -1))


@contextmanager
def locked_folder(folder: Path, name: str, seconds: float = 0) -> Iterator[None]:
    """:func:`locked` with a file in a folder, which is created. If nothing is left in it, it goes again."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / name, seconds):
            try:
                yield
            finally:
                (folder / name).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # it has files
            for each in new:
                each.rmdir()


@contextmanager
def lock_work_dir(folder: str | os.PathLike) -> Iterator[None]:
    """Context that locks a folder for one training.

    Raises:
        UserError: another process trains in this folder, or it cannot be written.
    """
    owner = Path(folder, OWNER)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(Path(folder), ".training.lock", _ORPHANS_END))
        except Timeout as error:
            process = read_beside(owner) or "another process"
            raise UserError(
                f"work_dir: expected a folder without a running training, got {folder}, used by {process} "
                f"({error.lock_file}); use another folder, or wait until it ends"
            ) from None
        except OSError as error:
            raise UserError(f"work_dir: {folder} cannot be written: {error.strerror or error}") from error
        stack.callback(owner.unlink, missing_ok=True)
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        yield
