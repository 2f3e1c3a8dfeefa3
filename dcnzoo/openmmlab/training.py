"""Training from the command line."""

import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.optim.scheduler.param_scheduler import INF
from mmengine.runner import Runner

from dcnzoo.openmmlab.checkpoints import CheckpointError, load_file
from dcnzoo.openmmlab.config_check import dicts
from dcnzoo.openmmlab.config_errors import config_errors
from dcnzoo.openmmlab.hooks import ProgressHook, SummaryHook
from dcnzoo.openmmlab.runner import Start, build_runner
from dcnzoo.openmmlab.separate_run import separate_run
from dcnzoo.openmmlab.work_dir import has_checkpoints, is_trained, next_replaced
from dcnzoo.utils.errors import UserError, require_flags
from dcnzoo.utils.fetch import DownloadError
from dcnzoo.utils.files import last_checkpoint, require_file
from dcnzoo.utils.text import counted

LOGGERS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}
# the settings that count epochs or iterations, by part of the config
STEPS = {
    "param_scheduler": ("begin", "end", "T_max", "milestones", "step_size", "total_steps", "periods"),
    "train_cfg": ("val_begin",),
    "custom_hooks": ("switch_epoch", "num_last_epochs"),
}


TRAINED = (
    "work_dir: expected a folder without checkpoints, got {}; --resume continues its training, --force "
    "replaces it"
)


@dataclass(frozen=True)
class TrainOptions:
    """The arguments of :func:`dcnzoo.train` that change the config; None leaves its setting.

    Attributes:
        epochs: number of epochs; the schedule is scaled with it.
        batch_size: images per iteration and process.
        lr: learning rate of the optimizer.
        patience: stop after this number of validations without a better result.
        amp: use mixed precision.
        auto_scale_lr: scale the learning rate by the batch size.
        logger: ``tensorboard`` or ``wandb``.
        seed: of all random numbers. On a CPU, two trainings with one seed give the same weights.

    Raises:
        UserError: a value is out of range.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    patience: int | None = None
    amp: bool = False
    auto_scale_lr: bool = False
    logger: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        require_flags(amp=self.amp, auto_scale_lr=self.auto_scale_lr)
        for name in ("epochs", "batch_size", "patience", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if value is not None and not (type(value) is int and least <= value < 2**32):
                raise UserError(f"{name}: expected an integer ≥ {least}, got {value!r}")
        if self.lr is not None and not (isinstance(self.lr, int | float) and 0 < self.lr < math.inf):
            raise UserError(f"lr: expected a positive number, got {self.lr!r}")
        if self.logger is not None and self.logger not in LOGGERS:
            raise UserError(f"logger: expected tensorboard or wandb, got {self.logger!r}")


def set_up_training(cfg: Config, options: TrainOptions) -> str:
    """Write the options of a training into its config.

    Returns:
        What has changed, on one line.

    Raises:
        UserError: ``auto_scale_lr`` without a base batch size, the config has not the setting of an option,
            or the package of ``logger`` is not installed.
    """
    if options.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if options.auto_scale_lr:
        cfg.auto_scale_lr = {**(cfg.get("auto_scale_lr") or {}), "enable": True}
    scaling = cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    if scaling.get("enable") and (type(base) is not int or base < 1):
        raise UserError(
            "auto_scale_lr.base_batch_size: expected the batch size for the config's learning rate, ≥ 1, "
            f"got {base}"
        )
    changes = []
    if options.epochs is not None:
        changes += _set_epochs(cfg, options.epochs)
    if options.batch_size is not None:
        changes.append(_set(cfg.train_dataloader, "batch_size", options.batch_size))
    if options.lr is not None:
        changes += _set_learning_rate(cfg, options.lr)
    if options.seed is not None:
        cfg.randomness = cfg.get("randomness") or {}
        changes.append(_set(cfg.randomness, "seed", options.seed))
    if options.patience is not None:
        _stop_early(cfg, options.patience)
    if options.logger is not None:
        _add_logger(cfg, options.logger)
    return ", ".join(filter(None, changes))


def choose_start(cfg: Config, resume: bool | str | None, force: bool) -> Start:
    """Decide how a training starts.

    Args:
        resume: a checkpoint to resume from; True: the latest one in the work directory. In a distributed
            training, whose launcher repeats the command after a failure, there may be none.
        force: train in a work directory that has checkpoints.

    Raises:
        UserError: the checkpoint does not exist; or the work directory has checkpoints, although ``resume``
            and ``force`` are not set.
    """
    start = Start(cfg.get("load_from"))
    if resume is True:
        resumable = has_checkpoints(cfg.work_dir)
        if not resumable and cfg.launcher == "none":
            raise UserError(f"resume: expected a checkpoint in {cfg.work_dir}, found none")
        if resumable or start.file is None:
            return Start(resumes=True)
    elif not (resume is None or resume is False):
        require_file(resume, "resume")
        return Start(resume, resumes=True)
    elif cfg.get("resume") and not force:
        start = Start(start.file, resumes=True)
    elif is_trained(cfg.work_dir) and not force:
        raise UserError(TRAINED.format(cfg.work_dir))
    if start.file:
        require_file(start.file, "checkpoint")
    return start


def nothing_left(cfg: Config, start: Start) -> str | None:
    """Return a line that says so if the checkpoint to resume from is the end of the training."""
    path = Path(start.file) if start.file else last_checkpoint(Path(cfg.work_dir))
    unit, end = "epoch", cfg.train_cfg.get("max_epochs")
    if not end:
        unit, end = "iter", cfg.train_cfg.get("max_iters")
    if not (start.resumes and end and path and path.is_file()):
        return None
    name = re.fullmatch(rf"{unit}_(\d+)\.pth", path.name)
    if name and int(name[1]) < end:  # without reading the file
        return None
    try:
        meta = load_file(path, map_location="meta").get("meta") or {}
    except CheckpointError:  # training resumes from an older one
        return None
    done = meta.get(unit, 0)
    if done < end or (done == end and cfg.get("val_cfg") and meta.get("validated") is False):
        return None
    units, hint = ("epochs", "; --epochs sets a larger number") if unit == "epoch" else ("iterations", "")
    return f"{cfg.work_dir}: {done} of {end} {units} are done, nothing is left to train{hint}"


@separate_run()
def train(
    cfg: Config,
    start: Start,
    allow_partial: bool = False,
    changes: str = "",
    verbose: bool = True,
    force: bool = False,
) -> None:
    """Train a detector as configured; log ``changes`` first.

    Args:
        force: replace the training in the work directory, and another config.

    Raises:
        UserError: a mistake in the config, or weights that cannot be downloaded or do not fit.
    """
    summary = None if verbose else SummaryHook(changes)
    replaces = is_trained(cfg.work_dir) and not start.resumes
    try:
        with config_errors(cfg):
            runner = build_runner(
                cfg,
                training=True,
                allow_partial=allow_partial,
                summary=summary,
                force=force,
                start=start,
                replaced=next_replaced(Path(cfg.work_dir)) if replaces else None,
            )
            _count_accumulated_batches(runner)
            if changes:
                runner.logger.info(f"changed: {changes}")
            try:
                runner.train()
            finally:
                for hook in runner.hooks:
                    if isinstance(hook, ProgressHook):
                        hook.stop()  # after an error, mmengine calls no hook
    except DownloadError as error:
        raise UserError(
            f"{error}; to train without them, write the config with dcnzoo data config --no-weights"
        ) from error


def main_metric(cfg: Config) -> str | None:
    """Return the metric that selects the best checkpoint: the mask AP if it is measured, else the box AP."""
    evaluator = cfg.get("val_evaluator") or {}
    if not isinstance(evaluator, dict) or evaluator.get("type") != "CocoMetric":
        return None
    return "coco/segm_mAP" if "segm" in evaluator.get("metric", "bbox") else "coco/bbox_mAP"


def _set(node: dict, key: str, value: object, owner: str = "") -> str:
    """Set ``node[key]``; return a description of the change, empty if there is none."""
    before, node[key] = node.get(key), value
    return "" if before == value else f"{owner}{key} {before} → {value}"


def _set_epochs(cfg: Config, epochs: int) -> list[str]:
    """Set the number of epochs, and scale all settings that count epochs or iterations."""
    before = cfg.train_cfg.get("max_epochs")
    if not before:
        raise UserError(f"epochs: expected a config with train_cfg.max_epochs, got {dict(cfg.train_cfg)}")
    factor = epochs / before

    def scaled(steps: int) -> int:
        return max(1, round(steps * factor)) if 0 < steps < INF else steps

    changes = [_set(cfg.train_cfg, "max_epochs", epochs)]
    for part, keys in STEPS.items() if factor != 1 else ():
        for _, node in dicts(cfg.get(part)):
            kind = node.get("type", "")
            owner = f"{getattr(kind, '__name__', kind)}."
            for key in (key for key in keys if node.get(key)):
                steps = node[key]
                new = scaled(steps) if isinstance(steps, int) else [*map(scaled, steps)]
                if key == "end":
                    new = max(new, node.get("begin", 0) + 1)
                if new != steps:
                    changes.append(_set(node, key, new, owner))
    return changes


def _set_learning_rate(cfg: Config, lr: float) -> list[str]:
    """Set the learning rate, and scale the lowest one of the schedules with it."""
    optimizer = cfg.optim_wrapper.get("optimizer") or {}
    before = optimizer.get("lr")
    if not before:
        raise UserError("lr: expected a config with optim_wrapper.optimizer.lr, found none")
    schedules = [node for _, node in dicts(cfg.get("param_scheduler")) if node.get("eta_min")]
    return [
        _set(optimizer, "lr", lr),
        *(_set(node, "eta_min", float(f"{node['eta_min'] * lr / before:.6g}")) for node in schedules),
    ]


def _stop_early(cfg: Config, patience: int) -> None:
    checkpoint = cfg.default_hooks.get("checkpoint") or {}
    best = checkpoint.get("save_best")
    monitor = best if isinstance(best, str) and best != "auto" else main_metric(cfg)
    if monitor is None:
        raise UserError(
            "patience: expected a val_evaluator of type CocoMetric, found none; "
            "default_hooks.checkpoint.save_best names another metric"
        )
    if not best:
        checkpoint.update(save_best=monitor, rule="greater")
    others = [hook for hook in cfg.get("custom_hooks") or [] if "EarlyStoppingHook" not in str(hook["type"])]
    hook = {"type": "PlateauEarlyStoppingHook", "monitor": monitor, "patience": patience}
    cfg.custom_hooks = [*others, {**hook, "rule": checkpoint.get("rule")}]


def _add_logger(cfg: Config, name: str) -> None:
    if find_spec(name) is None:
        raise UserError(f"logger: expected the package {name} to be installed: pip install {name}")
    visualizer = cfg.get("visualizer") or {"type": "DetLocalVisualizer", "name": "visualizer"}
    backends = visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}]
    others = [backend for backend in backends if backend["type"] != LOGGERS[name]]
    cfg.visualizer = {**visualizer, "vis_backends": [*others, {"type": LOGGERS[name]}]}


def _count_accumulated_batches(runner: Runner) -> None:
    """Scale the learning rate by the images per optimizer step, not per iteration as mmengine does.

    With ``accumulative_counts``, a step has that many iterations.
    """
    count = runner.cfg.optim_wrapper.get("accumulative_counts", 1)
    scaling = runner.cfg.get("auto_scale_lr") or {}
    if count == 1 or not scaling.get("enable"):
        return
    scaled = {"enable": True, "base_batch_size": scaling["base_batch_size"] / count}
    runner.logger.info(
        f"Each optimizer step has {counted(count, 'iterations')} (accumulative_counts): {scaled}"
    )
    if isinstance(runner, Runner):
        runner.auto_scale_lr = scaled
    else:
        runner.strategy._auto_scale_lr = scaled
