"""Shared memory and faults of the processes that load data: a training would wait for them for ever."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sized
from multiprocessing import queues

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, get_worker_info

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.hooks.seeds import random_states
from dcnzoo.utils.errors import UserError, one_line, printable

SHARED_MEMORY = "/dev/shm"  # nosec B108  where Linux keeps what processes share
_ENOUGH = 1 << 26  # bytes of a picture, with masks; where there are as many, none is read
_REMEDY = (
    "reduce batch_size or num_workers, give a container more (docker run --shm-size=8g), or set "
    "num_workers to 0"
)


def lack_of_memory(loader: DataLoader) -> str:
    """Say so if the batches that workers load ahead do not fit into shared memory; else, an empty text.

    The smaller one of two pictures counts: a training that could run is not refused.
    """
    data = loader.dataset
    if not isinstance(data, Sized) or not len(data):  # a stream has no length
        return ""
    if not loader.num_workers or not os.path.isdir(SHARED_MEMORY):
        return ""
    batches = loader.num_workers * (loader.prefetch_factor or 1) * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free, pictures = shutil.disk_usage(SHARED_MEMORY).free, batches * (loader.batch_size or 1)
    if free > pictures * _ENOUGH:
        return ""
    with random_states():
        least = min(_size(data[index]) for index in {0, len(data) // 2})
    if free > pictures * least:
        return ""
    return (
        f"num_workers: expected {pictures * least >> 20} MB of {SHARED_MEMORY} for {batches} batches that "
        f"{loader.num_workers} workers load ahead, got {free >> 20} MB: {_REMEDY}"
    )


def _size(item: object) -> int:
    """Return the bytes of a picture's tensors, which workers hand over in shared memory."""
    tensors = (each for each in tree_leaves(item) if isinstance(each, torch.Tensor))
    return sum(each.numel() * each.element_size() for each in tensors)


@contextlib.contextmanager
def loader_errors() -> Iterator[None]:
    """Context in which a loader's worker that cannot hand over a batch ends, and the error says why.

    Batches are handed over in shared memory, of which Docker gives a container 64 MB. If it is full, Python
    only prints the error, in a thread of the worker, and the training waits for the batch.

    Raises:
        UserError: a worker has ended.
    """
    try:
        with Changes() as changes:
            changes.set(queues.Queue, "_on_queue_feeder_error", staticmethod(_end_worker))
            yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(exited unexpectedly|killed by signal)", str(error)):
            raise
        size = shutil.disk_usage(SHARED_MEMORY).total >> 20 if os.path.isdir(SHARED_MEMORY) else 0
        raise UserError(
            f"num_workers: {one_line(error)}. Either memory or {SHARED_MEMORY} ({size} MB) is full: {_REMEDY}"
        ) from error


def _end_worker(error: Exception, batch: object) -> None:
    """End this process if it loads data; the loader notices it."""
    print(printable(f"a batch cannot be handed over: {one_line(error)}"), file=sys.stderr, flush=True)
    if get_worker_info() is not None:
        os._exit(1)
