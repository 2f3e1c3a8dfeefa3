"""Lock that allows only one training at a time in a work directory."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import read_beside, write_text

OWNER = ".training.txt"  # in the folder: the process that trains
_RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}
_ORPHANS_END = 6  # seconds; data-loading processes notice within five that their parent has died


@contextmanager
def lock_work_dir(folder: str | os.PathLike, launcher: str = "none") -> Iterator[None]:
    """Context that locks a folder for one training. The operating system releases the lock of a dead process.

    With a ``launcher``, only the process of rank 0 takes the lock.

    Raises:
        UserError: another process trains in this folder, or it cannot be written.
    """
    if int(os.environ.get(_RANKS.get(launcher, ""), 0)) > 0:
        yield
        return
    lock, owner = FileLock(Path(folder) / ".training.lock"), Path(folder) / OWNER
    try:
        owner.parent.mkdir(parents=True, exist_ok=True)
        acquired = lock.acquire(timeout=_ORPHANS_END)
    except Timeout:
        process = read_beside(owner) or "another process"
        raise UserError(
            f"work_dir: expected a folder without a running training, got {folder}, used by {process}; use "
            "another folder, or wait until it ends"
        ) from None
    except OSError as error:
        raise UserError(f"work_dir: {folder} cannot be written: {error.strerror or error}") from error
    with acquired:
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
