"""Memory of this process: the reuse of freed buffers.

By default, glibc on Linux returns large freed buffers to the system, and later maps new ones.
"""

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

# parameters of <malloc.h>: -4, M_MMAP_MAX: no buffer has a mapping of its own; -1, M_TRIM_THRESHOLD: bytes
# of freed memory that a process keeps; -2, M_TOP_PAD: bytes that it requests at a time
KEPT = {-4: 0, -1: 512 << 20, -2: 64 << 20}
# the values that glibc itself reaches as large buffers are freed; -3: M_MMAP_THRESHOLD
USUAL = {-4: 1 << 16, -3: 32 << 20, -1: 64 << 20, -2: 128 << 10}
VARIABLE = "DCNZOO_KEEP_MEMORY"
_lock = threading.RLock()  # reentrant: the garbage collector may delete a detector while the lock is held


@cache
def _libc() -> ctypes.CDLL | None:
    is_glibc = os.environ.get(VARIABLE) != "0" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if is_glibc else None


class KeptMemory:
    """While an instance exists, the process keeps freed buffers; then it returns them to the system.

    An owner creates it as its last attribute, which Python deletes after the others. ``DCNZOO_KEEP_MEMORY=0``
    switches it off. Processes that are forked inherit the setting.
    """

    _number = 0

    def __init__(self) -> None:
        self._count(1, KEPT)

    def __reduce__(self) -> tuple:
        return KeptMemory, ()  # a copy that another process receives is counted there

    def __del__(self, settings: dict = USUAL) -> None:
        self._count(-1, settings)

    # settings, libc and lock are default values: the module may be gone when the process ends
    def _count(self, change: int, settings: dict, libc: Callable = _libc, lock: Any = _lock) -> None:
        """Change the number of instances; apply the settings at the first one, and after the last one."""
        owner = type(self)
        with lock:
            owner._number += change
            if libc() is None:
                return
            is_first, is_last = change == owner._number == 1, owner._number == 0
            if is_first or is_last:
                for parameter, value in settings.items():
                    libc().mallopt(parameter, value)
            if change < 0:
                libc().malloc_trim(0)


def return_memory() -> None:
    """Return freed memory to the system, where the C library can."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
