"""Configs and checkpoints: a list with published results, and downloads. :func:`dcnzoo.load` loads a model.

On the command line: ``dcnzoo zoo --help``.
"""

from dcnzoo.utils.fetch import ChecksumError, DownloadError
from dcnzoo.zoo.description import operators_of
from dcnzoo.zoo.index import Model, Result, UnknownModelError, download, find, models, search

__all__ = [
    "ChecksumError",
    "DownloadError",
    "Model",
    "Result",
    "UnknownModelError",
    "download",
    "find",
    "models",
    "operators_of",
    "search",
]
