"""Read a config: its file and bases, and the options that change it."""

import copy
import os
import traceback
from collections.abc import Mapping

from mmengine.config import Config

from dcnzoo.openmmlab.config import json_config
from dcnzoo.openmmlab.config.tree import RUNNER_KEYS
from dcnzoo.openmmlab.config.type_names import use_names
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.text import nearest

PIPELINES = {"train_pipeline", "val_pipeline", "test_pipeline"}  # variables (tta_pipeline is a setting)


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
        # mmengine executes the text without a file name, but has it in a variable of its own frames
        for frame, number in traceback.walk_tb(error.__traceback__):
            code, filename = frame.f_code, frame.f_locals.get("filename")
            if "mmengine" in code.co_filename and isinstance(filename, str | os.PathLike):
                name = str(filename)
            elif code.co_filename in ("", name):
                line = number
        where = f"{name}, line {line}" if line else name
        text = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise UserError(f"config: {where}: {type(error).__name__}: {text}") from error
    merge_options(cfg, cfg_options, path)
    return cfg


def merge_options(cfg: Config, options: Mapping[str, object] | None, path: str | os.PathLike) -> None:
    """Change the settings that the options name, one after the other.

    Args:
        path: the config's file, for the messages.

    Raises:
        UserError: the config has no place for an option.
    """
    options = {} if options is None else options
    if not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise UserError(f"cfg_options: expected a mapping from keys to values, got {options!r}")
    problems = {
        key: _why_no_place(key, cfg) or _set_option(cfg, key, value) for key, value in options.items()
    }
    if lines := [f"{path}: cfg_options: {key}: {problem}" for key, problem in problems.items() if problem]:
        raise UserError(*lines)


def _set_option(cfg: Config, key: str, value: object) -> str:
    """Change a setting; return what is wrong with it, or an empty text."""
    try:
        cfg.merge_from_dict({key: copy.deepcopy(value)})  # it removes _delete_
    except AttributeError:  # mmengine merges list elements as if they were dictionaries
        return "expected whole lists of numbers or texts, got one element"
    except (KeyError, TypeError) as error:
        return one_line(error)
    return ""


def _why_no_place(key: str, cfg: Config) -> str:
    """Return why the config has no place for an option, or an empty text."""
    parts = key.split(".")
    if not all(parts):
        return f"expected names between the dots, got {key!r}"
    if key == "launcher":  # RunOptions replaces it
        return "expected it as an option of its own, got it among the settings of the config"
    if parts[0] == "custom_imports":
        return "expected it in a config, which imports the modules while it is read"
    if parts[0] in PIPELINES or (parts[0] in cfg and parts[0] not in RUNNER_KEYS):
        return "expected a setting such as train_dataloader.dataset.pipeline, got a variable, copied before"
    if parts[0] not in RUNNER_KEYS:
        return f"expected {nearest(parts[0], RUNNER_KEYS, 0.6) or 'a key of the runner'}, got an unknown key"
    return ""
