"""Folders with files of known names: work directories, OpenMMLab's packages, the cache of downloads."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from dcnzoo.utils.files import read_beside

CHECKPOINTS = ("best", "last")  # of a work directory, in place of a file
LAST = "last_checkpoint"  # in a work directory: the file whose text is the path of the last checkpoint


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a work directory, which may have been moved after it was written."""
    return read_beside(folder / LAST, lambda text: _named_in(folder, text))


def _named_in(folder: Path, text: str) -> Path:
    path = Path(text.strip())
    if not path.name or not path.name.isprintable():
        raise ValueError("expected the path of a checkpoint")
    beside = folder / path.name
    # in the folder out_dir, which is no work directory itself
    is_elsewhere = not beside.exists() and path.is_file() and not (path.parent / LAST).exists()
    return path if is_elsewhere else beside


def mim_folder(package: str) -> Path | None:
    """Return the folder in which OpenMMLab's packages install their configs, tools and metafiles."""
    spec = find_spec(package)
    folder = Path(spec.origin).parent / ".mim" if spec and spec.origin else None
    return folder if folder and folder.is_dir() else None


def cache_folder() -> Path:
    """The folder in which torch.hub stores checkpoints, so that torch and dcnzoo share downloads."""
    if torch := sys.modules.get("torch"):  # torch.hub.set_dir may have changed it
        return Path(torch.hub.get_dir(), "checkpoints")
    home = os.environ.get("TORCH_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    return Path(home, "hub", "checkpoints").expanduser()
