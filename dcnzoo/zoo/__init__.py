"""Configs and checkpoints: a list with published results, and downloads. :func:`dcnzoo.load` loads a model.

On the command line: ``dcnzoo zoo --help``. ``index`` lists the models, ``source`` finds what MODEL of a
command stands for. ``training`` and ``testing`` have :func:`dcnzoo.train` and :func:`dcnzoo.test`; for own
pictures, ``own_data`` chooses a model and writes the files, and ``config_writer`` computes the config from
the answers of ``config_reader``.
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
