"""Configs and checkpoints: a list with published results, downloads, and detectors that are ready to use.

::

    from dcnzoo import zoo
    detector = zoo.load('faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco')

    from mmdet.apis import inference_detector
    inference_detector(detector, 'image.jpg')

On the command line: ``dcnzoo zoo --help``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import ChecksumError, DownloadError, cache_folder, checksum_in_name, verify
from dcnzoo.utils.files import write_bytes
from dcnzoo.zoo.description import Description, describe
from dcnzoo.zoo.index import Model, Result, UnknownModelError, find, models, search

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ChecksumError",
    "Description",
    "DownloadError",
    "Model",
    "Result",
    "UnknownModelError",
    "cache_folder",
    "checksum_in_name",
    "describe",
    "download",
    "find",
    "load",
    "models",
    "search",
    "verify",
]


def download(name: str, folder: str | os.PathLike | None = None) -> Path:
    """Download the weights of a model to torch's cache or to ``folder``; return the path.

    Weights that are part of dcnzoo are used in place, or copied to ``folder``.

    Raises:
        UserError: the model is unknown or has no weights, or the download failed.
    """
    weights = find(name).only_weights()
    if "://" in weights:
        from dcnzoo.utils.fetch import fetch

        return fetch(weights, folder)
    file = Path(weights)
    if not file.exists():
        raise UserError(
            f"{name}: its weights are in dcnzoo's repository, not in the wheel: expected {file.name} in "
            f"{file.parent}"
        )
    verify(file)
    if folder is None:
        return file
    copy = Path(folder) / file.name
    write_bytes(copy, file.read_bytes())
    return copy


def load(name: str, **options: object) -> nn.Module:
    """Build a detector with its published weights; see :func:`dcnzoo.zoo.loading.load`."""
    from dcnzoo.zoo.loading import load  # imports MMDetection

    return load(name, **options)
