"""Handle images that cannot be read or have another size: skip a limited number in training, stop in tests.

Without this, MMDetection stops at the first such image, possibly hours into a training, with a traceback
from a worker process.
"""

import logging
from collections.abc import Callable

import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log

from dcnzoo.compat.patches import Changes, Patch
from dcnzoo.utils.errors import UserError, describe, printable
from dcnzoo.utils.text import problem_of_size


def skip_unreadable_images(changes: Changes) -> None:
    """Patch all data sets of MMDetection to skip images that cannot be read."""

    def full_init(load: Callable, self: BaseDetDataset) -> None:
        load(self)
        if not self.test_mode:
            # 1 for each image that cannot be used; shared memory, so that all workers count together
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
    """Return the sample, or None if its image cannot be used; ``BaseDataset`` then draws another at random.

    An image can be used if it can be read, and has the size that its annotation states.

    Raises:
        UserError: the image cannot be used, and this is a test or too many images have failed; or a step of
            the pipeline failed.
    """
    info = self.get_data_info(idx)
    sample = error = None
    try:
        sample = self.pipeline(info)  # its loader writes the size of the file into info
    except Exception as raised:
        error = raised
    path, reason = info.get("img_path"), _why_unusable(self, info, error)
    if error and not reason:  # name the picture, as this may be a process of the data loader
        raise UserError(printable(f"{path}: {describe(error)}")) from error
    if not reason:
        return sample
    reason = printable(f"{path}: {reason}")
    if self.test_mode:
        raise UserError(f"{reason}; a test needs every image") from error
    if self.unreadable[idx]:
        return None
    self.unreadable[idx] = 1
    failed, total = int(self.unreadable.sum()), len(self)
    allowed = max(1, min(100, total // 20))
    if failed > allowed:
        raise UserError(f"{reason}; expected at most {allowed} unusable images of {total}, got {failed}")
    text = f"{reason}; skipped; {failed} of {total} images so far (limit {allowed})"
    print_log(text, logger="current", level=logging.WARNING)
    return None


def _why_unusable(dataset: BaseDetDataset, info: dict, error: Exception | None) -> str:
    """Describe what is wrong with an image after its pipeline; empty if nothing is, or not with the image."""
    if "ori_shape" in info:
        height, width = info["ori_shape"]
        return problem_of_size((width, height), (info.get("width"), info.get("height")))
    loader = next((t for t in dataset.pipeline.transforms if isinstance(t, LoadImageFromFile)), None)
    path = info.get("img_path")
    if error is None or loader is None or not isinstance(path, str):
        return ""
    try:
        loader(dict(info))
    except Exception:
        backend = get_file_backend(path, backend_args=loader.backend_args)
        missing = hasattr(backend, "exists") and not backend.exists(path)  # LMDB and http have no such method
        return f"expected a picture, found {'no file' if missing else 'an unreadable file'}"
    return ""
