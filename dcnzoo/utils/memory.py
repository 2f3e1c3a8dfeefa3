"""Memory of this process: its peak, and reuse of freed buffers.

On Linux, glibc returns large freed buffers to the system and maps others later.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

# of <malloc.h>: M_MMAP_MAX: no buffer has a mapping of its own; M_TRIM_THRESHOLD: the freed memory that a
# process keeps; M_TOP_PAD: the memory that it requests at a time
SETTINGS = {-4: 0, -1: 512 << 20, -2: 64 << 20}
VARIABLE = "DCNZOO_KEEP_MEMORY"


@cache
def _configured() -> Callable[[int], int] | None:
    """Change the settings of glibc's allocator, once in a process, and return its ``malloc_trim``."""
    if os.environ.get(VARIABLE) == "0" or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    for parameter, value in SETTINGS.items():
        libc.mallopt(parameter, value)
    return libc.malloc_trim


class KeptMemory:
    """While an instance exists, the process keeps freed buffers; then it returns them to the system.

    An owner creates it as its last attribute, which Python deletes after the others. ``DCNZOO_KEEP_MEMORY=0``
    switches it off. Processes that are forked inherit the setting.
    """

    def __init__(self) -> None:
        _configured()

    def __reduce__(self) -> tuple:
        return KeptMemory, ()  # also in the process that receives a copy

    def __del__(self, configured: Callable = _configured) -> None:  # the module may be gone
        if trim := configured():
            trim(0)


def return_memory() -> None:
    """Return freed memory to the system, where the C library can."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> int:
    """Reset the peak memory of this process and return its present memory; 0 where the system cannot."""
    return_memory()  # so that a detector does not use memory of the one before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError):
        return 0


def peak() -> int:
    """Return the peak memory of this process since it was reset, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
