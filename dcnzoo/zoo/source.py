"""Find the config and the weights that MODEL stands for, in every command and in :func:`dcnzoo.load`."""

import contextlib
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dcnzoo.openmmlab import hub
from dcnzoo.openmmlab.checkpoints import CheckpointError, load_file
from dcnzoo.openmmlab.config.json_config import is_json_config
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.config.paths import is_config
from dcnzoo.openmmlab.runs.recipe import MODEL, Recipe, Use, read_config_file
from dcnzoo.openmmlab.saved import SavedCheckpoints, last_checkpoint
from dcnzoo.utils.errors import UserError, show
from dcnzoo.utils.fetch import fetch
from dcnzoo.utils.files import expanded, files_beside, require_file
from dcnzoo.utils.folders import CHECKPOINTS, is_work_dir
from dcnzoo.zoo.index import CONFIGS, Model, UnknownModelError, find, local_file, models, require_model


@dataclass(frozen=True)
class Source:
    """The config and the weights that MODEL stands for, as :func:`resolve` returns them.

    Attributes:
        name: MODEL as the user wrote it.
        weights: a file of the user; None if there is none.
        published: weights of the zoo, or an address; see :func:`dcnzoo.zoo.index.local_file`.
        work_dir: the work directory, if MODEL is one, or a checkpoint or config in one.
        selected: ``best`` or ``last``, if the checkpoint was selected in a work directory.
    """

    name: str
    config: Path
    weights: Path | None = None
    published: str = ""
    work_dir: Path | None = None
    selected: str = ""

    @functools.cached_property
    def entry(self) -> Model | None:
        """The entry of the zoo that has this config."""
        same = (m for m in models() if m.name == self.config.stem and m.config.samefile(self.config))
        return next(same, None)

    def recipe(self, cfg_options: Mapping[str, object] | None = None, required: Use = MODEL) -> Recipe:
        """Read the config: see :meth:`Recipe.read`.

        ``work_dir`` is the folder that MODEL names. The config of a copied or renamed folder still
        has the old path.
        """
        folder = {} if self.work_dir is None else {"work_dir": str(self.work_dir)}
        return Recipe.read(self.config, {**folder, **(cfg_options or {})}, required)

    @property
    def has_weights(self) -> bool:
        return bool(self.weights or self.published)

    def read_weights(self) -> Path:
        """Return the file of the weights, downloaded if necessary; print the choice of a checkpoint.

        Raises:
            UserError: there are none, or the download failed.
        """
        if self.selected:
            hint = "; `last` selects the last one" if self.selected == "best" else ""
            show(f"checkpoint: {self.weights}, the {self.selected}{hint}")
        if self.weights is not None:
            require_file(str(self.weights), "checkpoint")
            return self.weights
        if not self.published:
            raise UserError(f"checkpoint: expected a file with weights for {self.name}, got none")
        is_of_entry = self.entry is not None and self.published == self.entry.checkpoint
        return local_file(self.published) if is_of_entry else fetch(self.published)


def resolve(model: str | os.PathLike[str] | None, checkpoint: str | os.PathLike[str] | None = None) -> Source:
    """Find the config and the weights that MODEL stands for. Only files of the Hub are downloaded.

    Args:
        model: as for :func:`dcnzoo.load`.
        checkpoint: a file or an address with other weights; ``best`` or ``last`` of a work directory.

    Raises:
        UserError: the model or the file is unknown.
    """
    if not isinstance(model, str | os.PathLike) or not str(model):
        raise UserError(f"model: expected a name, a config or a work directory, got {model!r}")
    name = str(model)
    require_model(name)
    if name.startswith(hub.PREFIX):
        source = Source(name, *hub.fetch_model(name))
    else:
        found = (each(name, expanded(name), checkpoint) for each in RESOLVERS)
        source = next(filter(None, found))
    if checkpoint is None or (source.selected and checkpoint in CHECKPOINTS):
        return source
    if "://" in str(checkpoint):
        return replace(source, weights=None, published=str(checkpoint), selected="")
    require_file(str(checkpoint), "checkpoint")
    return replace(source, weights=expanded(checkpoint), published="", selected="")


# A function for each kind of MODEL, which returns None if MODEL is of another kind


def _repository(name: str, path: Path, checkpoint: object) -> Source | None:
    """Return a repository of the Hub that another program has downloaded."""
    config = path / hub.CONFIG
    return Source(name, config, path / hub.WEIGHTS) if is_json_config(config) else None


def _work_directory(name: str, path: Path, checkpoint: str | os.PathLike[str] | None) -> Source | None:
    if not os.path.isdir(path):  # Path.is_dir raises if the name is too long
        return None
    configs = _configs(path)
    if not configs:
        hint = f"`dcnzoo train --data {path}` trains on pictures"
        raise UserError(f"model: expected a work directory of a training, found no config in {path}; {hint}")
    last, saved = last_checkpoint(path), SavedCheckpoints(path)
    if last and checkpoint != "last" and saved.number(last.name) is None:  # the config sets the names
        saved = SavedCheckpoints.of(read_config_file(_config_of(configs, last), {"work_dir": str(path)}))
    best = saved.best()
    source = Source(name, _config_of(configs, best or last), work_dir=path)
    if (checkpoint == "best" and best is None) or (checkpoint == "last" and last is None):
        raise UserError(f"checkpoint: expected a {checkpoint} one in {path}, found none")
    if best is not None and checkpoint != "last":
        return replace(source, weights=best, selected="best")
    return source if last is None else replace(source, weights=last, selected="last")


def _checkpoint(name: str, path: Path, checkpoint: object) -> Source | None:
    is_file = path.suffix in (".pth", ".safetensors") and os.path.isfile(path)
    if not is_file or not (configs := _configs(path.parent)):
        return None
    if checkpoint is not None:
        raise UserError(f"checkpoint: expected none with a checkpoint as model, {name}, got {checkpoint}")
    return Source(name, _config_of(configs, path), path, work_dir=path.parent)


def _config(name: str, path: Path, checkpoint: object) -> Source | None:
    if path.suffix not in CONFIGS or "::" in name or not os.path.isfile(path):
        return None
    folder = path.parent
    is_of_training = is_work_dir(folder) and SavedCheckpoints(folder).exist
    return Source(name, path, work_dir=folder if is_of_training else None)


def _published(name: str, path: Path, checkpoint: object) -> Source:
    if path.suffix and os.path.isfile(path):
        raise UserError(
            f"model: expected a name in the zoo, a config (.py) or a work directory, got {name}; "
            "checkpoint=FILE takes a file of weights or an exported file"
        )
    try:
        entry = find(name)
    except UnknownModelError:
        if "::" not in name:
            raise
        return Source(name, Path(base_path(name, "")[0]))  # a config of a package that is not in the zoo
    return Source(name, entry.config, published=entry.checkpoint)


RESOLVERS = (_repository, _work_directory, _checkpoint, _config, _published)


def _configs(folder: Path) -> list[Path]:
    """List the configs of the training in a folder. Other programs there run only if the user names them.

    Raises:
        UserError: the folder has configs, but no log of a training.
    """
    if is_json_config(folder / hub.CONFIG):  # programs in a repository of the Hub are not run
        return [folder / hub.CONFIG]
    programs = files_beside(folder, "*.py")
    logged = files_beside(folder, "*/vis_data/config.py")
    configs = [*filter(is_config, programs)] or [*filter(is_config, logged)]
    if configs and not any(folder.glob("*/vis_data")):  # last_checkpoint alone proves nothing
        raise UserError(
            f"model: expected a work directory of dcnzoo train with the folder of its log, got {folder} "
            f"with the program {configs[0].name}. Only if you trust its author: model={configs[0]}, "
            "checkpoint=FILE"
        )
    return configs


def _config_of(configs: list[Path], weights: Path | None) -> Path:
    """Return the config that a checkpoint names, of the training that wrote it; else, the newest config."""
    stem = ""
    if len(configs) > 1 and weights is not None and weights.suffix == ".pth" and weights.is_file():
        with contextlib.suppress(CheckpointError):
            meta = load_file(weights, map_location="meta").get("meta") or {}
            stem = re.sub(r"_\d{8}_\d{6}$", "", str(meta.get("experiment_name")))  # mmengine adds the time
    named = [config for config in configs if config.stem == stem]
    return max(named or configs, key=lambda path: (path.stat().st_mtime, path))
