"""Report errors of data loader workers that would otherwise make a training wait for ever."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from multiprocessing import queues

from torch.utils.data import get_worker_info

from dcnzoo.compat.patches import Changes
from dcnzoo.utils.errors import UserError, one_line, printable


@contextlib.contextmanager
def loader_errors() -> Iterator[None]:
    """Context that ends a loader's worker that cannot hand over a batch, and raises an error with the reason.

    Batches are handed over in shared memory, of which Docker gives a container 64 MB. If it is full, Python
    only prints the error, in a thread of the worker, and the training waits for the batch.
    """
    try:
        with Changes() as changes:
            changes.set(queues.Queue, "_on_queue_feeder_error", staticmethod(_end_worker))
            yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(exited unexpectedly|killed by signal)", str(error)):
            raise
        remedy = "reduce batch_size or num_workers, or give a container more (docker run --shm-size=8g)"
        raise UserError(f"num_workers: {one_line(error)}. Memory or /dev/shm is full: {remedy}") from error


def _end_worker(error: Exception, batch: object) -> None:
    """End this process if it loads data; the loader notices it."""
    print(printable(f"a batch cannot be handed over: {one_line(error)}"), file=sys.stderr, flush=True)
    if get_worker_info() is not None:
        os._exit(1)
