"""Images that cannot be read: passed over in training, with a warning and up to a number; an error in tests.

MMDetection stops at the first, with a traceback from a worker, in whichever hour of the training that is.
"""

import functools
import logging

import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset
from mmengine.dataset import BaseDataset
from mmengine.fileio import exists
from mmengine.logging import print_log

from dcnzoo.errors import UserError


def pass_over_unreadable_images() -> None:
    """In every data set of MMDetection's."""
    if BaseDetDataset.prepare_data is BaseDataset.prepare_data:
        BaseDetDataset.prepare_data = prepare_data
        BaseDetDataset.full_init = _with_marks(BaseDetDataset.full_init)


def _with_marks(full_init):
    @functools.wraps(full_init)
    def wrapper(self) -> None:
        full_init(self)
        if not self.test_mode:
            # which images cannot be read, one byte each; every worker sees what the others found
            self.unreadable = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    return wrapper


def prepare_data(self: BaseDetDataset, idx: int) -> dict | None:
    """The sample, or None, in whose place ``BaseDataset`` takes another at random.

    Raises:
        UserError: the image cannot be read, and it is needed for a test, or too many could not be.
    """
    try:
        return BaseDataset.prepare_data(self, idx)
    except Exception as error:
        reason = _why_unreadable(self, idx)
        if reason is None:
            raise
        if self.test_mode:
            raise UserError(f"{reason}; a test needs all {len(self)} images") from error
    if self.unreadable[idx]:
        return None
    self.unreadable[idx] = 1
    found, total = int(self.unreadable.sum()), len(self)
    allowed = max(1, min(100, total // 20))
    if found > allowed:
        raise UserError(
            f"{reason}; expected at most {allowed} of {total} images that cannot be read, got {found}"
        )
    print_log(
        f"{reason}; passed over, as {found} of {total} images so far (at most {allowed} may be)",
        logger="current",
        level=logging.WARNING,
    )
    return None


def _why_unreadable(dataset: BaseDetDataset, idx: int) -> str | None:
    """None if the image can be read, and what went wrong is something else."""
    loader = next((t for t in dataset.pipeline.transforms if isinstance(t, LoadImageFromFile)), None)
    sample = dataset.get_data_info(idx)
    if loader is None or not isinstance(sample.get("img_path"), str):
        return None
    try:
        loader(dict(sample))
    except Exception:
        path = sample["img_path"]
        there = exists(path, backend_args=loader.backend_args)
        return f"{path}: expected a picture, found {'one that cannot be read' if there else 'no file'}"
    return None
