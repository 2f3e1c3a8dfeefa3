"""Files of the zoo's weights on this machine. This module imports neither torch nor OpenMMLab."""

import os
from pathlib import Path

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import fetch, name_of, verify
from dcnzoo.utils.files import write_bytes
from dcnzoo.utils.folders import cache_folder
from dcnzoo.zoo.index import Model, find


def local_file(weights: str, name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return a file of the zoo's weights on this machine: see :func:`download`."""
    if "://" in weights:
        return fetch(weights, folder or cache_folder())  # named as by torch.hub and MMDetection
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


def download(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Download the weights of a model to torch's cache or to ``folder``; return the path.

    Weights that are part of dcnzoo are used in place, or copied to ``folder``.

    Raises:
        UserError: the model is unknown or has no weights, or the download failed.
    """
    model = find(name)
    if len(model.weights) != 1:
        number = len(model.weights) or "none"
        raise UserError(f"{model.name}: expected one file of weights, found {number}")
    return local_file(model.weights[0], name, folder)


def is_downloaded(model: Model) -> bool:
    """Whether all files of the model's weights are in the package or in torch's cache."""
    files = [cache_folder() / name_of(each) if "://" in each else Path(each) for each in model.weights]
    return bool(files) and all(file.is_file() for file in files)
