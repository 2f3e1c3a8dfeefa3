"""Handle images that cannot be read: skip a limited number in training, stop in tests.

Without this, MMDetection stops at the first such image, possibly hours into a training, with a traceback
from a worker process.
"""

import logging
from collections.abc import Callable

import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset
from mmengine.dataset import BaseDataset
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log

from dcnzoo.compat.patches import Changes, Patch
from dcnzoo.utils.errors import UserError, describe, printable


def skip_unreadable_images(changes: Changes) -> None:
    """Patch all data sets of MMDetection to skip images that cannot be read."""

    def full_init(load: Callable, self: BaseDetDataset) -> None:
        load(self)
        if not self.test_mode:
            # 1 for each image that cannot be read; shared memory, so that all workers count together
            self.unreadable = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    changes.set(BaseDetDataset, "prepare_data", prepare_data)
    changes.wrap(BaseDetDataset, "full_init", full_init)


SKIP_UNREADABLE_IMAGES = Patch(
    "skip_unreadable_images",
    change=skip_unreadable_images,
    target="mmdet.datasets.BaseDetDataset",
    reason="an unreadable image stops the training; dcnzoo.openmmlab.datasets tolerates up to 5 %",
    versions="mmdet 3.3.0",
)


def prepare_data(self: BaseDetDataset, idx: int) -> dict | None:
    """Return the sample, or None if its image cannot be read; ``BaseDataset`` then draws another at random.

    Raises:
        UserError: the image cannot be read, and this is a test or too many images have failed; or a step of
            the pipeline failed.
    """
    try:
        return BaseDataset.prepare_data(self, idx)
    except Exception as error:
        reason = _why_unreadable(self, idx)
        if reason is None:  # name the picture, as this may be a process of the data loader
            path = self.get_data_info(idx).get("img_path")
            raise UserError(printable(f"{path}: {describe(error)}")) from error
        if self.test_mode:
            raise UserError(f"{reason}; a test needs every image") from error
    if self.unreadable[idx]:
        return None
    self.unreadable[idx] = 1
    failed, total = int(self.unreadable.sum()), len(self)
    allowed = max(1, min(100, total // 20))
    if failed > allowed:
        raise UserError(f"{reason}; expected at most {allowed} unreadable images of {total}, got {failed}")
    text = f"{reason}; skipped; {failed} of {total} images so far (limit {allowed})"
    print_log(text, logger="current", level=logging.WARNING)
    return None


def _why_unreadable(dataset: BaseDetDataset, idx: int) -> str | None:
    """Describe what is wrong with the image; None if the error has another cause."""
    loader = next((t for t in dataset.pipeline.transforms if isinstance(t, LoadImageFromFile)), None)
    sample = dataset.get_data_info(idx)
    if loader is None or not isinstance(sample.get("img_path"), str):
        return None
    path = sample["img_path"]
    try:
        height, width = loader(dict(sample))["img"].shape[:2]
    except Exception:
        backend = get_file_backend(path, backend_args=loader.backend_args)
        missing = hasattr(backend, "exists") and not backend.exists(path)  # LMDB and http have no such method
        content = "no file" if missing else "an unreadable file"
        return printable(f"{path}: expected a picture, found {content}")
    stated = (sample.get("width"), sample.get("height"))
    if None not in stated and stated != (width, height):  # the masks would not fit
        return printable(
            f"{path}: expected a picture of {stated[0]} × {stated[1]}, as in the annotations, "
            f"found {width} × {height}"
        )
    return None
