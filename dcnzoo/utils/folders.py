"""Folders with files of known names: work directories, OpenMMLab's, the cache of downloads."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

CHECKPOINTS = ("best", "last")  # name a checkpoint of a work directory, in place of a file


def is_work_dir(folder: str | os.PathLike) -> bool:
    """Whether a folder has the files of a training: MMEngine's log or a last checkpoint."""
    path = Path(folder)
    return (path / "last_checkpoint").is_file() or any(path.glob("*/vis_data/config.py"))


def mim_folder(package: str) -> Path | None:
    """Return the folder in which OpenMMLab's packages install their configs, tools and metafiles."""
    spec = find_spec(package)
    folder = Path(spec.origin).parent / ".mim" if spec and spec.origin else None
    return folder if folder and folder.is_dir() else None


def cache_folder() -> Path:
    """Return the folder in which torch.hub stores checkpoints, so that torch and dcnzoo share downloads."""
    if torch := sys.modules.get("torch"):  # torch.hub.set_dir may have changed it
        return Path(torch.hub.get_dir(), "checkpoints")
    home = os.environ.get("TORCH_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    return Path(home, "hub", "checkpoints").expanduser()
