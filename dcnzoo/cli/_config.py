"""What the command-line tools share: arguments, the config, and errors that fit on a line."""

import argparse
import logging
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from dcnzoo.openmmlab.loading import LoadCheckpointHook
from dcnzoo.openmmlab.packages import base_path
from dcnzoo.utils.errors import UserError, command, one_line, user_errors

__all__ = [
    "UserError",
    "add_allow_partial",
    "add_cfg_options",
    "add_config",
    "build_runner",
    "command",
    "load_config",
    "make_parser",
    "read_config_file",
    "require_file",
    "user_errors",
]


def make_parser(description: str, checkpoint: bool = False) -> argparse.ArgumentParser:
    """The arguments common to the tools that run a config, named as MMDetection names them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    if checkpoint:
        parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--work-dir", help="where logs and results go (default: work_dirs/<name of the config>)"
    )
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    # torchrun sets LOCAL_RANK; older launchers pass it as an argument
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=config_file, help="config file, or one that a package brings: dcnzoo::FOLDER/FILE.py"
    )


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


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, e.g. model.backbone.dcn=True "
        'train_dataloader.batch_size=4 "model.backbone.strides=(1,2,2)"',
    )


def add_allow_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="load what fits of a checkpoint that does not fit the model",
    )


def read_config_file(path: str | os.PathLike) -> Config:
    """``Config.fromfile``, whose errors do not say in which file they are.

    Raises:
        UserError: the config, or one that it inherits from, cannot be read.
        FileNotFoundError: a config that it inherits from does not exist.
    """
    try:
        return Config.fromfile(path)
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


def require_folder(path: str | os.PathLike, what: str) -> None:
    """Raise UserError if the path, or a part of it, is a file."""
    there = next((part for part in (Path(path), *Path(path).parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise UserError(f"{what}: expected a folder, got {path}: {there} is a file")


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's settings merged in and dcnzoo's hooks in place."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))

    cfg = read_config_file(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    require_folder(cfg.work_dir, "--work-dir")

    if args.launcher == "none" and cfg.get("strategy", {}).get("type") == "DDPStrategy":
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


def build_runner(cfg: Config, fine_tune: bool = False, allow_partial: bool = False) -> Runner:
    """mmengine's runner, which loads checkpoints by :func:`dcnzoo.openmmlab.weights.load_state`.

    Args:
        fine_tune, allow_partial: what may be missing in ``load_from``; see there.
    """
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    runner.logger.addFilter(_is_news)
    runner.register_hook(LoadCheckpointHook(fine_tune, allow_partial))
    return runner


def _is_news(record: logging.LogRecord) -> bool:
    """mmengine's own hooks use names that it deprecates, and it warns of them in every training."""
    return not str(record.msg).startswith(
        ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')
    )


def require_file(path: str, what: str) -> None:
    """Raise UserError unless a local path exists; addresses with a scheme are not looked at."""
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(f"{what}: expected a file, found none at {path}")
