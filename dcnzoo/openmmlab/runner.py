"""Configs and runners for the commands."""

import functools
import logging
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks  # noqa: F401  for configs
from dcnzoo.openmmlab import json_config
from dcnzoo.openmmlab.class_names import use_names
from dcnzoo.openmmlab.config_check import check_config
from dcnzoo.openmmlab.hooks import SummaryHook
from dcnzoo.openmmlab.hooks.checkpoint import LoadCheckpointHook
from dcnzoo.openmmlab.settings import OLD_KEYS, dicts, variables
from dcnzoo.openmmlab.setup import setup
from dcnzoo.openmmlab.work_dir import WorkDirHook, has_checkpoints
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import output_files, require_file, require_folder

setup()  # any config may use dcn=True


# arguments of steps of pipelines that must be tuples, which JSON and YAML do not have
SIZES = {"scale", "scales", "img_scale", "crop_size", "size", "ratio_range"}


def _as_tuple(value: object) -> object:
    """Return a list of numbers as a tuple, also inside a list."""
    if not isinstance(value, list):
        return value
    return tuple(value) if all(isinstance(each, int | float) for each in value) else [*map(_as_tuple, value)]


def read_config_file(path: str | os.PathLike, cfg_options: dict | None = None) -> Config:
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
    for path, node in dicts(cfg._cfg_dict):
        if "pipeline" in path:
            node.update({key: _as_tuple(node[key]) for key in SIZES & node.keys()})
    if old := OLD_KEYS.keys() & cfg.keys():
        stored, read = variables(cfg.text)
        for key in old & read | old - stored:  # variables; a dump would set them without reading them
            cfg.pop(key)
    options = {} if cfg_options is None else cfg_options
    if not isinstance(options, Mapping):
        raise UserError(f"cfg_options: expected a mapping from keys to values, got {options!r}")
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: cfg_options: {one_line(error)}") from error
    return cfg


def read_checked_config(
    path: str | os.PathLike, cfg_options: dict | None = None, required: Sequence[str] = ("model",)
) -> Config:
    """Read a config by :func:`read_config_file` and check the parts that are used without a runner."""
    cfg = read_config_file(path, cfg_options)
    check_config(cfg, path, required, runs=False, options=cfg_options)
    return cfg


def load_config(
    config: str,
    work_dir: str | os.PathLike | None = None,
    cfg_options: dict | None = None,
    launcher: str = "none",
    local_rank: int = 0,
    channels_last: bool = True,
    required: Sequence[str] = (),
) -> Config:
    """Read a config, merge the settings of the command line, check them and add dcnzoo's hooks.

    Args:
        channels_last: on a CPU, compute in channels-last order, if the model is MMDetection's.
        required: top-level keys that the command uses, beside ``model``.

    Raises:
        UserError: the file does not exist, cannot be read or has problems (see
            :func:`~dcnzoo.openmmlab.config_check.check_config`), or ``work_dir`` is a file.
    """
    require_file(config, "config")
    os.environ.setdefault("LOCAL_RANK", str(local_rank))

    cfg = read_config_file(config, cfg_options)
    check_config(cfg, config, ("model", *required), options=cfg_options)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(config).stem)
    require_folder(cfg.work_dir, "work_dir")

    if launcher == "none" and cfg.get("strategy", {}).get("type") == "DDPStrategy":
        cfg.pop("strategy")  # needs a launcher; in a single process, the runner uses its default strategy

    cfg.default_hooks = cfg.get("default_hooks") or {}
    hooks = cfg.default_hooks
    hooks.setdefault("epoch_seed", {"type": "EpochSeedHook"})
    hooks.setdefault("finite_loss", {"type": "FiniteLossHook"})
    hooks.setdefault("progress", {"type": "ProgressHook"})
    hooks.setdefault("buffers", {"type": "BroadcastBuffersHook"})
    hooks.pop("channels_last", None)  # of an earlier training in the same work directory
    detector = cfg.get("default_scope", "mmdet") == "mmdet"  # other packages have layers that view maps
    if channels_last and detector and launcher == "none" and get_device() == "cpu":
        hooks.channels_last = {"type": "ChannelsLastHook"}
    checkpoint = hooks.setdefault("checkpoint", {"type": "CheckpointHook", "interval": 1})
    if checkpoint is not None and checkpoint.get("type") == "CheckpointHook":  # None disables it
        checkpoint.type = "AtomicCheckpointHook"
    return cfg


@dataclass(frozen=True)
class Start:
    """How a training or a test starts.

    Attributes:
        file: a checkpoint; None: random weights, or with ``resumes`` the latest one in the work directory.
        resumes: continue the training of the checkpoint; else take only its weights.
    """

    file: str | None = None
    resumes: bool = False


def start_of(cfg: Config) -> Start:
    """Continue the training in the work directory if there is one; else start as the config says."""
    return Start(resumes=True) if has_checkpoints(cfg.work_dir) else Start(cfg.get("load_from"))


def build_runner(
    cfg: Config,
    training: bool = False,
    allow_partial: bool = False,
    summary: SummaryHook | None = None,
    force: bool = False,
    start: Start | None = None,
    replaced: Path | None = None,
) -> Runner:
    """Build mmengine's runner; it loads checkpoints by :func:`dcnzoo.openmmlab.weights.load_state`.

    The start is no setting of the config, so that the config in the work directory is the same for each.

    Args:
        training: write the config to the work directory and fine-tune from ``load_from``. Otherwise, an
            existing config stays: it belongs to the checkpoints in that folder.
        allow_partial: see :func:`dcnzoo.openmmlab.weights.load_state`.
        summary: prints in place of mmengine's log, of which the terminal then shows only warnings. The file
            has the whole log.
        force: replace another config in the work directory.
        start: default: as the config says.
        replaced: folder for the files of the training that this one replaces.

    Raises:
        UserError: the work directory has another file with the config's name and no checkpoint.
    """
    name = cfg.get("runner_type", "Runner")
    kind: Any = name if isinstance(name, type) else RUNNERS.get(name)
    if kind is None:
        raise UserError(f"runner_type: expected the name of a runner, got {name}")
    resumes = cfg.pop("resume", False)
    start = start or Start(cfg.get("load_from"), resumes)
    changes: dict[str, object] = {"dump_config": lambda self: None}  # WorkDirHook writes it
    if summary is not None:
        changes["build_logger"] = functools.partialmethod(_log_to_file, kind.build_logger)
    subclass: Any = type(kind.__name__, (kind,), changes)
    runner = subclass.from_cfg(cfg)
    runner._load_from, runner._resume = start.file, start.resumes
    if training:
        file = Path(cfg.filename or f"{runner.timestamp}.py").with_suffix(".py").name  # also of JSON or YAML
        force = force or has_checkpoints(cfg.work_dir)  # the config there belongs to this training
        if is_main_process():
            with output_files("train", force=force) as claim:
                claim(Path(cfg.work_dir, file))
        runner.register_hook(WorkDirHook(file, force, replaced))
    if summary is not None:
        runner.register_hook(summary)
    # warnings about deprecated names that mmengine's own hooks use
    runner.logger.addFilter(lambda log: not str(log.msg).startswith(('"FileClient"', '"HardDiskBackend"')))
    runner.register_hook(LoadCheckpointHook(fine_tune=training, allow_partial=allow_partial))
    return runner


def _log_to_file(runner: Runner, build_logger: Callable[..., MMLogger], **kwargs: object) -> MMLogger:
    """Build the logger of a runner; it prints only warnings."""
    logger = build_logger(runner, **kwargs)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.WARNING)
    return logger
