"""Training from the command line."""

from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from dcnzoo.openmmlab.runner import build_runner
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.fetch import DownloadError
from dcnzoo.utils.files import require_file


def set_up_training(cfg: Config, amp: bool, auto_scale_lr: bool, resume: str | None) -> None:
    """Write the options of a training into its config.

    Args:
        amp: use mixed precision.
        auto_scale_lr: scale the learning rate by the batch size.
        resume: a checkpoint to resume from, or ``auto`` for the latest one in the work directory.

    Raises:
        UserError: ``auto_scale_lr`` without a base batch size, or the checkpoint does not exist.
    """
    if amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if auto_scale_lr:
        cfg.auto_scale_lr = {**(cfg.get("auto_scale_lr") or {}), "enable": True}
    _check_base_batch_size(cfg)
    if resume == "auto":
        cfg.resume = not cfg.get("load_from") or _has_checkpoint(cfg)
        cfg.load_from = None if cfg.resume else cfg.load_from
    elif resume is not None:
        cfg.resume, cfg.load_from = True, resume
    if cfg.get("load_from"):
        require_file(cfg.load_from, "checkpoint")


def train(cfg: Config, allow_partial: bool = False) -> None:
    """Train a detector as configured.

    Raises:
        UserError: a mistake in the config, or weights that cannot be downloaded or do not fit.
    """
    with user_errors():
        runner = build_runner(cfg, training=True, allow_partial=allow_partial)
        _count_accumulated_batches(runner)
    try:
        runner.train()
    except DownloadError as error:
        raise UserError(
            f"{error}; to train without them, write the config with dcnzoo data config --no-weights"
        ) from error


def _check_base_batch_size(cfg: Config) -> None:
    scaling = cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    if scaling.get("enable") and (type(base) is not int or base < 1):
        raise UserError(
            "auto_scale_lr.base_batch_size: expected the batch size for the config's learning rate, ≥ 1, "
            f"got {base}"
        )


def _count_accumulated_batches(runner: Runner) -> None:
    """Scale the learning rate by the images per optimizer step, not per iteration as mmengine does.

    With ``accumulative_counts``, a step has that many iterations.
    """
    count = runner.cfg.optim_wrapper.get("accumulative_counts", 1)
    scaling = runner.cfg.get("auto_scale_lr") or {}
    if count == 1 or not scaling.get("enable"):
        return
    runner.logger.info(
        f"Each optimizer step has {count} iterations (accumulative_counts): the base batch size of "
        f"{scaling.base_batch_size} images is {scaling.base_batch_size / count:g} images per iteration."
    )
    owner, name = (
        (runner, "auto_scale_lr") if isinstance(runner, Runner) else (runner.strategy, "_auto_scale_lr")
    )
    setattr(owner, name, {"enable": True, "base_batch_size": scaling.base_batch_size / count})


def _has_checkpoint(cfg: Config) -> bool:
    """Whether a checkpoint to resume from exists. If not, training starts from ``load_from``."""
    work_dir, hook = Path(cfg.work_dir), cfg.default_hooks.get("checkpoint") or {}
    folders = [work_dir]
    if hook.get("out_dir"):
        if "://" in str(hook.out_dir):
            return (work_dir / "last_checkpoint").is_file()
        folders.append(Path(hook.out_dir) / work_dir.name)
    return (work_dir / "last_checkpoint").is_file() or any(
        folder.is_dir() and any(folder.glob("*.pth")) for folder in folders
    )
