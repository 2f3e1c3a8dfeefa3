"""Downloads of published weights."""

from __future__ import annotations

import os
from pathlib import Path

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import fetch, verify
from dcnzoo.utils.files import write_bytes
from dcnzoo.zoo.index import find


def download(name: str, folder: str | os.PathLike | None = None) -> Path:
    """Download the weights of a model to torch's cache or to ``folder``; return the path.

    Weights that are part of dcnzoo are used in place, or copied to ``folder``.

    Raises:
        UserError: the model is unknown or has no weights, or the download failed.
    """
    weights = find(name).only_weights()
    if "://" in weights:
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
