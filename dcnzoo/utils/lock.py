"""Lock that allows only one training at a time in a work directory."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text

_RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}
_ORPHANS_END = 15  # seconds; data-loading processes notice within five that their parent has died


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
    folder = Path(folder)
    lock, owner = FileLock(folder / ".training.lock"), folder / ".training.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_ORPHANS_END if _has_died(owner) else 0)
    except Timeout:
        known = _read(owner)
        process = f"process {known.get('pid', 'unknown')} on {known.get('host', 'an unknown host')}"
        raise UserError(
            f"--work-dir: expected a folder without a running training, got {folder}: {process} has "
            f"been training there since {known.get('since', 'an unknown time')}; use another folder, or wait "
            "until it ends"
        ) from None
    except OSError as error:
        raise UserError(f"--work-dir: {folder} cannot be written: {error.strerror or error}") from error
    try:
        content = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_text(owner, json.dumps(content))
        yield
        owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _read(owner: Path) -> dict:
    try:
        return json.loads(owner.read_text())
    except (OSError, ValueError):
        return {}


def _has_died(owner: Path) -> bool:
    known = _read(owner)
    if os.name != "posix" or known.get("host") != socket.gethostname():
        return False
    try:
        os.kill(known["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
