"""Reuse freed buffers: on Linux, glibc returns large ones to the system and maps others later."""

import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache

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
