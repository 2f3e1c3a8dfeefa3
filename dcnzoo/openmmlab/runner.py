"""Configs and runners of the commands."""

import logging
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.hooks
import dcnzoo.openmmlab.models  # noqa: F401  any config can then say dcn=True
from dcnzoo.openmmlab.loading import LoadCheckpointHook
from dcnzoo.openmmlab.packages import base_path
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import require_file, require_folder


def config_file(name: str) -> str:
    """The path of a config, which an installed package has where nobody would look for it.

    Raises:
        UserError: there is no such package or config.
    """
    if "::" not in name:
        return name
    try:
        return base_path(name, "")[0]
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(f"config: expected one of a package, got {name}: {one_line(error)}") from None


def read_config_file(path: str | os.PathLike, cfg_options: dict | None = None) -> Config:
    """``Config.fromfile``, whose errors do not say in which file they are, with ``cfg_options`` merged in.

    Raises:
        UserError: the config, or one that it inherits from, cannot be read.
        FileNotFoundError: a config that it inherits from does not exist.
    """
    try:
        cfg = Config.fromfile(path)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        name, line, frame = str(path), getattr(error, "lineno", None), error.__traceback__
        while frame is not None:  # mmengine runs the text without its name, which is in mmengine's frames
            code, filename = frame.tb_frame.f_code, frame.tb_frame.f_locals.get("filename")
            if "mmengine" in code.co_filename and isinstance(filename, str | os.PathLike):
                name = str(filename)
            elif code.co_filename in ("", name):
                line = frame.tb_lineno
            frame = frame.tb_next
        where = f"{name}, line {line}" if line else name
        text = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise UserError(f"config: {where}: {type(error).__name__}: {text}") from error
    cfg.merge_from_dict(cfg_options or {})
    return cfg


def unwrap_dataset(dataset: ConfigDict) -> ConfigDict:
    """The config of the data set inside wrappers of a single one, such as RepeatDataset."""
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset


def load_config(
    config: str,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    launcher: str = "none",
    local_rank: int = 0,
) -> Config:
    """The config with the command line's settings merged in and dcnzoo's hooks in place.

    Raises:
        UserError: there is no such file, it cannot be read, ``work_dir`` is a file.
    """
    require_file(config, "config")
    os.environ.setdefault("LOCAL_RANK", str(local_rank))

    cfg = read_config_file(config, cfg_options)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(config).stem)
    require_folder(cfg.work_dir, "--work-dir")

    if launcher == "none" and cfg.get("strategy", {}).get("type") == "DDPStrategy":
        cfg.pop("strategy")  # it wants several processes; for one, the runner has another

    cfg.default_hooks = cfg.get("default_hooks") or {}
    hooks = cfg.default_hooks
    hooks.setdefault("epoch_seed", {"type": "EpochSeedHook"})
    hooks.setdefault("finite_loss", {"type": "FiniteLossHook"})
    hooks.setdefault("progress", {"type": "ProgressHook"})
    checkpoint = hooks.setdefault("checkpoint", {"type": "CheckpointHook", "interval": 1})
    if checkpoint is not None and checkpoint.get("type") == "CheckpointHook":  # None switches it off
        checkpoint.type = "AtomicCheckpointHook"
    return cfg


def build_runner(cfg: Config, training: bool = False, allow_partial: bool = False) -> Runner:
    """mmengine's runner, which loads checkpoints by :func:`dcnzoo.openmmlab.weights.load_state`.

    Args:
        training: the config is written to the work directory, and ``load_from`` is fine-tuned. Otherwise a
            training's config stays there as it is: its checkpoints fit that one.
        allow_partial: what may be missing in ``load_from``; see there.
    """
    name = cfg.get("runner_type", "Runner")
    kind = name if isinstance(name, type) else RUNNERS.get(name)
    if kind is None:
        raise UserError(f"runner_type: expected the name of a runner, got {name}")
    if not training:
        kind = type(kind.__name__, (kind,), {"dump_config": lambda self: None})
    runner = kind.from_cfg(cfg)
    runner.logger.addFilter(_is_news)
    runner.register_hook(LoadCheckpointHook(fine_tune=training, allow_partial=allow_partial))
    return runner


def _is_news(record: logging.LogRecord) -> bool:
    """mmengine's own hooks use names that it deprecates, and it warns of them in every training."""
    return not str(record.msg).startswith(
        ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')
    )
