"""A config as it was read and checked, and what the options of a run change in it."""

import copy
import os
import re
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks  # noqa: F401  for configs
from dcnzoo.openmmlab.config import json_config
from dcnzoo.openmmlab.config.check import check_config
from dcnzoo.openmmlab.config.paths import DIRECTORY, below, text_of
from dcnzoo.openmmlab.config.rules import OLD_KEYS
from dcnzoo.openmmlab.config.tree import RUNNER_KEYS, dicts, variables
from dcnzoo.openmmlab.config.type_names import use_names
from dcnzoo.openmmlab.options import RunOptions
from dcnzoo.openmmlab.setup import setup
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.text import few

setup()  # any config may use dcn=True

# the keys that a command uses, for Recipe.read
MODEL = ("model",)
TRAINING = ("model", "train_dataloader", "train_cfg", "optim_wrapper")
TEST = ("model", "test_dataloader", "test_cfg", "test_evaluator")
# variables of MMDetection's configs. In a dump, they set nothing: the settings contain copies of their values
VARIABLES = {"train_pipeline", "test_pipeline", "data_root", "dataset_type"}
# arguments of steps of pipelines that must be tuples, which JSON and YAML do not have
SIZES = {"scale", "scales", "img_scale", "crop_size", "size", "ratio_range"}


@dataclass(frozen=True)
class Recipe:
    """A config that was read and checked, and what the options of a run have changed in it.

    How a run starts is no part of it: see :class:`dcnzoo.openmmlab.runs.start.Start`.

    Attributes:
        changes: a text for each, for the terminal and the log.
    """

    cfg: Config
    changes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        path: str | os.PathLike,
        cfg_options: Mapping[str, object] | None = None,
        required: Sequence[str] = MODEL,
    ) -> "Recipe":
        """Read a config by :func:`read_config_file` and check the parts that a command uses.

        Args:
            required: their keys. With ``train_cfg`` or ``test_cfg``, the command has a runner.

        Raises:
            UserError: see :func:`dcnzoo.openmmlab.config.check.check_config`.
        """
        cfg = read_config_file(path, cfg_options)
        runs = not {"train_cfg", "test_cfg"}.isdisjoint(required)
        check_config(cfg, path, required, runs, cfg_options)
        return cls(cfg)

    def with_options(self, options: RunOptions) -> "Recipe":
        """Return the recipe of a run with these options."""
        cfg = copy.deepcopy(self.cfg)
        return Recipe(cfg, (*self.changes, *filter(None, options.apply(cfg))))

    @property
    def work_dir(self) -> Path:
        return Path(self.cfg.work_dir)

    def text(self) -> str:
        """Return what a training writes to its work directory.

        Paths in this folder are relative to the config, so that it can be moved; so are those that are
        relative in the config that was read.
        """
        source = Path(os.path.abspath(self.cfg.filename or ""))
        roots = [str(self.work_dir), os.path.abspath(self.work_dir), os.path.realpath(self.work_dir)]
        if source.is_file() and DIRECTORY in source.read_text(encoding="utf-8"):
            roots.append(str(source.parent))
        return text_of(Config(below(self.cfg.to_dict(), self.work_dir, roots)))


def _as_tuple(value: object) -> object:
    """Return a list of numbers as a tuple, also inside a list."""
    if not isinstance(value, list):
        return value
    return tuple(value) if all(isinstance(each, int | float) for each in value) else [*map(_as_tuple, value)]


def _variables_among(options: Mapping[str, object], cfg: Config) -> Iterator[str]:
    """Yield an error for each option that changes a variable: the settings have already copied its value."""
    names = {key.split(".")[0] for key in options} - RUNNER_KEYS
    if not names:
        return
    read = variables(cfg.text)[1] & cfg.keys()
    parts = {key: cfg[key] for key in cfg if key in RUNNER_KEYS}
    settings = [(f"{path}.{key}"[1:], key, node[key]) for path, node in dicts(parts) for key in node]
    for name in sorted(names & (read | VARIABLES)):
        if name in cfg:
            # other settings may have the same number by chance: then the text must contain "key=name"
            assignment = rf"(\w+)[\"']?\s*[=:]\s*(?:{{{{\s*)?(?:_base_\.)?{re.escape(name)}\b"
            keys, is_number = {*re.findall(assignment, cfg.text)}, not isinstance(cfg[name], Collection)
            equal = ((path, key) for path, key, value in settings if value == cfg[name])
            copies = [path for path, key in equal if key in keys or not is_number]
        else:
            copies = [path for path, key, _ in settings if key == "pipeline" and name.endswith(key)]
        if copies or name in read:
            expected = few(copies) if copies else "a setting"
            yield f"{name}: expected {expected}, got a variable, whose value was copied before"


def read_config_file(path: str | os.PathLike, cfg_options: Mapping[str, object] | None = None) -> Config:
    """Read a config and merge ``cfg_options``. Errors name the file and the line.

    Raises:
        UserError: the config or one of its bases cannot be read, or it has no place for an option.
        FileNotFoundError: one of its bases does not exist.
    """
    try:
        is_data = json_config.is_json_config(path)
        cfg = json_config.read(path) if is_data else use_names(Config.fromfile(path))
    except (UserError, FileNotFoundError):
        raise
    except (Exception, SystemExit) as error:
        name, line = str(path), getattr(error, "lineno", None)
        # mmengine executes the text without a file name; mmengine's own frames have it
        for frame, number in traceback.walk_tb(error.__traceback__):
            code, filename = frame.f_code, frame.f_locals.get("filename")
            if "mmengine" in code.co_filename and isinstance(filename, str | os.PathLike):
                name = str(filename)
            elif code.co_filename in ("", name):
                line = number
        where = f"{name}, line {line}" if line else name
        text = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise UserError(f"config: {where}: {type(error).__name__}: {text}") from error
    for key_path, node in dicts(cfg._cfg_dict):
        if "pipeline" in key_path:
            node.update({key: _as_tuple(node[key]) for key in SIZES & node.keys()})
    if old := OLD_KEYS.keys() & cfg.keys():
        stored, read = variables(cfg.text)
        for key in old & read | old - stored:  # variables; a dump would set them without reading them
            cfg.pop(key)
    _merge(cfg, {} if cfg_options is None else cfg_options, path)
    return cfg


def _merge(cfg: Config, options: Mapping[str, object], path: str | os.PathLike) -> None:
    """Change the settings that the options name. Errors name the config's path."""
    if not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise UserError(f"cfg_options: expected a mapping from keys to values, got {options!r}")
    if empty := [key for key in options if not all(key.split("."))]:
        raise UserError(
            f"{path}: cfg_options: expected names between the dots, got {few([*map(repr, empty)])}"
        )
    if mistakes := [f"{path}: cfg_options: {text}" for text in _variables_among(options, cfg)]:
        raise UserError(*mistakes)
    try:
        cfg.merge_from_dict(dict(options))
    except AttributeError as error:  # of mmengine, which merges elements of lists like dictionaries
        text = f"expected whole lists of numbers or texts, got one element among {few([*options])}"
        raise UserError(f"{path}: cfg_options: {text}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: cfg_options: {one_line(error)}") from error
