"""Say after Ctrl-C and SIGTERM how the training continues."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dcnzoo.openmmlab.runs.recipe import RunConfig


@contextmanager
def interruption_hint(run: RunConfig) -> Iterator[None]:
    """Context that adds to a KeyboardInterrupt how to resume the training, and raises it at SIGTERM, too.

    Slurm and containers send SIGTERM before they kill a process.
    """
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    is_used = is_free and threading.current_thread() is threading.main_thread()
    if is_used:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        if run.saved.can_resume:
            raise KeyboardInterrupt(f"{run.work_dir}: the option resume=True continues it") from None
        raise
    finally:
        if is_used:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
