"""Find the config and the weights of a model by its name."""

import os
from pathlib import Path

from dcnzoo.openmmlab import hub
from dcnzoo.openmmlab.json_config import is_json_config
from dcnzoo.openmmlab.packages import base_path
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import CHECKPOINTS, files_beside, last_checkpoint, require_file
from dcnzoo.zoo import download
from dcnzoo.zoo.index import find

CONFIGS = (".py", ".json", ".yaml", ".yml")


def locate(
    model: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    weights: bool = True,
    required: bool = False,
    trust_config: bool = False,
) -> tuple[Path, Path | None]:
    """Return the config and the weights that MODEL on the command line stands for.

    Args:
        model: as for :func:`dcnzoo.load`.
        checkpoint: a file or an address with other weights; ``best`` or ``last`` of a work directory.
        weights: find those of a work directory, and download those of a model in the zoo.
        required: a model without weights is an error.

        trust_config: see :func:`dcnzoo.openmmlab.hub.fetch_model`.

    Returns:
        The path of the weights is None for a config file without ``checkpoint``, and for a work directory
        without a checkpoint.

    Raises:
        UserError: the model or the file is unknown, has no weights, or the download failed.
    """
    name, path, last = str(model), Path(os.path.expanduser(model)), None
    if not name:  # Path("") is the current folder
        raise UserError("model: expected a name, a config or a work directory, got an empty text")
    if name.startswith(hub.PREFIX):
        config, last = hub.fetch_model(name, trust_config)
    elif is_json_config(path / hub.CONFIG):  # a repository that was downloaded by another program
        config, last = path / hub.CONFIG, path / hub.WEIGHTS
    elif os.path.isdir(path):  # Path.is_dir raises if the name is too long
        config = work_directory(path)
        if weights and checkpoint in (None, *CHECKPOINTS):
            last, checkpoint = checkpoint_of(path, checkpoint), None
    elif path.suffix in (".pth", ".safetensors") and os.path.isfile(path) and _configs(path.parent):
        config, last = work_directory(path.parent), path  # a checkpoint of a work directory
    elif path.suffix in CONFIGS and "::" not in name and (os.path.isfile(path) or len(path.parts) > 1):
        require_file(name, "model")
        config = path
    elif "::" in name and (checkpoint is not None or not weights):
        config = Path(base_path(name, "")[0])
    elif path.suffix and os.path.isfile(path):
        raise UserError(
            f"model: expected a name in the zoo, a config (.py) or a work directory, got {model}. "
            "A file of weights or an exported file is the checkpoint, not the model"
        )
    else:
        listed = find(name)
        config = listed.config
        if checkpoint is None and weights:
            last = download(listed.id)
    if checkpoint is None:
        if required and last is None:
            raise UserError(f"checkpoint: expected a file with weights for {model}, got none")
        return config, last
    if "://" in str(checkpoint):
        from dcnzoo.utils.fetch import fetch

        return config, fetch(str(checkpoint))
    require_file(str(checkpoint), "checkpoint")
    return config, Path(checkpoint).expanduser()


def work_directory(folder: Path) -> Path:
    """Return the newest config of a folder that ``dcnzoo train`` wrote.

    Raises:
        UserError: the folder has no config.
    """
    if configs := _configs(folder):
        return max(configs, key=_time)
    raise UserError(f"model: expected a work directory of dcnzoo train, found no config in {folder}")


def _configs(folder: Path) -> list[Path]:
    if is_json_config(folder / hub.CONFIG):  # a repository of the Hub may also have a program: it is not run
        return [folder / hub.CONFIG]
    return files_beside(folder, "*.py") or files_beside(folder, "*/vis_data/config.py")


def checkpoint_of(folder: Path, which: str | None = None) -> Path | None:
    """Return a checkpoint of a work directory, and print its name.

    Args:
        which: ``best``, ``last``, or None: the best one if the training has recorded one, else the last.
    """
    best = max(files_beside(folder, "best_*.pth"), key=_time, default=None)
    if which == "best" and best is None:
        raise UserError(f"checkpoint: expected a best one (best_*.pth) in {folder}, found none")
    if best is not None and which != "last":
        print(f"checkpoint: {best}, the best; `last` selects the last one")
        return best
    last = last_checkpoint(folder)
    if last is not None:
        print(f"checkpoint: {last}, the last")
    return last


def _time(path: Path) -> float:
    return path.stat().st_mtime
