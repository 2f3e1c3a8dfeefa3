"""A config as it was read and checked, and what the options of a run change in it."""

import copy
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from mmengine.config import Config

import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks  # noqa: F401  for configs
from dcnzoo.openmmlab.config import json_config
from dcnzoo.openmmlab.config.check import check_config
from dcnzoo.openmmlab.config.paths import DIRECTORY, below, text_of
from dcnzoo.openmmlab.config.rules import OLD_KEYS
from dcnzoo.openmmlab.config.tree import RUNNER_KEYS, as_tuple, copies, dicts, runner_settings, variables
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


def _variables_among(options: Mapping[str, object], cfg: Config) -> Iterator[str]:
    """Yield an error for each option that changes a variable: the settings have already copied its value."""
    names = {key.split(".")[0] for key in options} - RUNNER_KEYS
    if not names:
        return
    read = variables(cfg.text)[1]
    for name in sorted(names):
        if name in cfg:
            settings = copies(cfg, name, name in read)
        else:  # a variable of the config from which this one was written
            settings = [
                path for path, key, _ in runner_settings(cfg) if key == "pipeline" and name.endswith(key)
            ]
        if settings or name in read & cfg.keys():
            expected = few(settings) if settings else "a setting"
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
            node.update({key: as_tuple(node[key]) for key in SIZES & node.keys()})
    options = {} if cfg_options is None else cfg_options
    _check_options(options, cfg, path)
    if old := OLD_KEYS.keys() & cfg.keys():
        stored, read = variables(cfg.text)
        for key in old & read | old - stored:  # variables; a dump would set them without reading them
            cfg.pop(key)
    _merge(cfg, options, path)
    return cfg


def _check_options(options: Mapping[str, object], cfg: Config, path: str | os.PathLike) -> None:
    """Raise UserError for options that cannot have an effect."""
    if not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise UserError(f"cfg_options: expected a mapping from keys to values, got {options!r}")
    if empty := [key for key in options if not all(key.split("."))]:
        raise UserError(
            f"{path}: cfg_options: expected names between the dots, got {few([*map(repr, empty)])}"
        )
    mistakes = []
    if "launcher" in options:  # RunOptions replaces it
        mistakes.append(f"launcher: expected launcher={options['launcher']} as an option of its own")
    for first, second in combinations(options, 2):
        if first.startswith(f"{second}."):
            mistakes.append(f"{first}: expected after {second}, which replaces it, got before")
        elif second.startswith(f"{first}.") and not isinstance(options[first], Mapping):
            mistakes.append(f"{second}: expected settings as {first}, got {options[first]!r}")
    if mistakes := [f"{path}: cfg_options: {text}" for text in (*mistakes, *_variables_among(options, cfg))]:
        raise UserError(*mistakes)


def _merge(cfg: Config, options: Mapping[str, object], path: str | os.PathLike) -> None:
    """Change the settings that the options name. Errors name the config's path."""
    impossible = next(filter(None, (_without_place(key, cfg) for key in options)), "")
    try:
        cfg.merge_from_dict(dict(options))
    except AttributeError as error:  # of mmengine, which merges elements of lists like dictionaries
        text = f"expected whole lists of numbers or texts, got one element among {few([*options])}"
        raise UserError(f"{path}: cfg_options: {impossible or text}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: cfg_options: {impossible or one_line(error)}") from error


def _without_place(key: str, cfg: Config) -> str:
    """Return why the config has no place for an option, or an empty text."""
    node: object = cfg._cfg_dict
    parts = key.split(".")
    for number, part in enumerate(parts):
        where = ".".join(parts[:number])
        if isinstance(node, list | tuple):
            if not (part.isdecimal() and int(part) < len(node)):
                return f"{key}: expected an index of {where} from 0 to {len(node) - 1}, got {part}"
            node = node[int(part)]
        elif not isinstance(node, Mapping):
            return f"{key}: expected settings as {where}, got {node!r}"
        elif part in node:
            node = node[part]
        else:
            return ""
    return ""
