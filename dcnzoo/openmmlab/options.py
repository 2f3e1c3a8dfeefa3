"""The options of a training and of a test, and what they change in a config."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim.scheduler.param_scheduler import INF

from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.openmmlab.config.tree import class_of, dicts
from dcnzoo.openmmlab.hooks import DEFAULT_HOOKS
from dcnzoo.openmmlab.models.tta import use_test_time_augmentation
from dcnzoo.utils.errors import UserError

LOGGERS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}
# the settings that count epochs or iterations, by part of the config
STEPS = {
    "param_scheduler": ("begin", "end", "T_max", "milestones", "step_size", "total_steps", "periods"),
    "train_cfg": ("val_begin",),
    "custom_hooks": ("switch_epoch", "num_last_epochs"),
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of every run.

    Attributes:
        work_dir: folder of logs and results (default: the config's, else ``work_dirs/`` + the config's name).
        device: ``"cpu"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is one, else the CPU.
        channels_last: on a CPU, compute in channels-last order, if the model is MMDetection's.
        allow_partial: if the weights do not fit the model, load those that fit.
        verbose: print mmengine's whole log.
        launcher: launcher of a distributed run, such as ``pytorch``, or ``none``.
    """

    work_dir: str | os.PathLike[str] | None = None
    device: str | torch.device = "auto"
    channels_last: bool = True
    allow_partial: bool = False
    verbose: bool = False
    launcher: str = "none"

    def apply(self, cfg: Config, fixed: Collection[str] = ()) -> list[str]:
        """Write the options into a config, and add dcnzoo's hooks; return a text for each change.

        Args:
            fixed: paths of settings that stay as they are when others scale with the epochs or learning rate.

        Raises:
            UserError: ``work_dir`` is a file, or the config does not have the setting of an option.
        """
        changes = [_set(cfg, "launcher", self.launcher)] if "launcher" in cfg else []
        cfg.launcher = self.launcher
        folder = self.work_dir or cfg.get("work_dir") or Path("work_dirs", Path(cfg.filename).stem)
        cfg.work_dir = os.path.expanduser(folder)
        if self.launcher == "none" and (cfg.get("strategy") or {}).get("type") == "DDPStrategy":
            cfg.pop("strategy")  # needs a launcher; in a single process, the runner uses its default strategy
        cfg.default_hooks = cfg.get("default_hooks") or {}
        hooks, loop = cfg.default_hooks, cfg.get("train_cfg") or {}
        if "checkpoint" not in hooks and loop.get("max_iters") and not loop.get("max_epochs"):
            hooks.checkpoint = ConfigDict(DEFAULT_HOOKS["checkpoint"], by_epoch=False, max_keep_ckpts=3)
            hooks.checkpoint.interval = loop.get("val_interval", 1000)  # as mmengine's loop
        for name, hook in DEFAULT_HOOKS.items():
            hooks.setdefault(name, ConfigDict(hook))
        kind = hooks.checkpoint.get("type") if isinstance(hooks.checkpoint, dict) else None
        if str(kind).rpartition(".")[2] == "CheckpointHook":
            hooks.checkpoint["type"] = "AtomicCheckpointHook"
        hooks.pop("channels_last", None)  # an earlier training may have written it into its config
        detector = cfg.get("default_scope", "mmdet") == "mmdet"  # other packages' layers may call x.view
        if self.channels_last and detector and self.launcher == "none" and get_device() == "cpu":
            hooks.channels_last = {"type": "ChannelsLastHook"}
        return changes


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """The options of a training; None leaves the config's setting.

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
        for name in ("epochs", "batch_size", "patience", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if value is not None and not (type(value) is int and least <= value < 2**32):
                raise UserError(f"{name}: expected an integer ≥ {least}, got {value!r}")
        if self.lr is not None and not (isinstance(self.lr, int | float) and 0 < self.lr < math.inf):
            raise UserError(f"lr: expected a positive number, got {self.lr!r}")
        if self.logger is not None and self.logger not in LOGGERS:
            raise UserError(f"logger: expected tensorboard or wandb, got {self.logger!r}")

    def apply(self, cfg: Config, fixed: Collection[str] = ()) -> list[str]:
        """See :meth:`RunOptions.apply`.

        Raises:
            UserError: also for ``auto_scale_lr`` without a base batch size, or if the package of ``logger``
                is not installed.
        """
        changes = super().apply(cfg, fixed)
        if self.amp:
            changes.append(_set(cfg.optim_wrapper, "type", "AmpOptimWrapper", "optim_wrapper."))
        if self.auto_scale_lr:
            cfg.auto_scale_lr = {**(cfg.get("auto_scale_lr") or {}), "enable": True}
        scaling = cfg.get("auto_scale_lr") or {}
        base = scaling.get("base_batch_size")
        if scaling.get("enable") and (type(base) is not int or base < 1):
            raise UserError(
                "auto_scale_lr.base_batch_size: expected the batch size for the config's learning rate, ≥ 1, "
                f"got {base}"
            )
        if self.epochs is not None:
            changes += _set_epochs(cfg, self.epochs, fixed)
        if self.batch_size is not None:
            changes.append(_set(cfg.train_dataloader, "batch_size", self.batch_size))
            sampler = cfg.train_dataloader.get("sampler") or {}
            if "batch_size" in sampler:  # of several sources
                changes.append(_set(sampler, "batch_size", self.batch_size, "sampler."))
        if self.lr is not None:
            changes += _set_learning_rate(cfg, self.lr, fixed)
        if self.seed is not None:
            cfg.randomness = cfg.get("randomness") or {}
            changes.append(_set(cfg.randomness, "seed", self.seed))
        if self.patience is not None:
            _stop_early(cfg, self.patience)
        if self.logger is not None:
            _add_logger(cfg, self.logger)
        return [change for change in changes if change]


@dataclass(frozen=True, kw_only=True)
class TestOptions(RunOptions):
    """The options of a test.

    Attributes:
        metrics: ``bbox``, ``segm`` or ``proposal`` (default: the config's).
        out: file for the predictions: ``.pkl``, or ``.json`` in COCO's format.
        format_only: write ``out`` without evaluating it.
        show_dir: folder for images with drawn detections.
        show_score_thr: draw detections above this score (default: 0.3).
        tta: merge the detections of the image and its mirror image.
        unsafe_load: load weights from a file that contains more; this **runs any code in the file**.
        exported: a file of ``dcnzoo export`` in place of the model.
        backend: runtime of the exported file (default: the one for its ending).

    Raises:
        UserError: an option would have no effect in combination with the others.
    """

    metrics: Sequence[str] = ()
    out: str | os.PathLike[str] | None = None
    format_only: bool = False
    show_dir: str | os.PathLike[str] | None = None
    show_score_thr: float | None = None
    tta: bool = False
    unsafe_load: bool = False
    exported: Path | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.out is not None and not str(self.out).endswith((".pkl", ".pickle", ".json")):
            raise UserError(f"out: expected a name that ends in .pkl or .json, got {self.out}")
        if self.format_only and (self.metrics or not self.as_json):
            raise UserError("format_only: expected out=FILE.json, without metrics")
        if self.show_score_thr is not None and self.show_dir is None:
            raise UserError("show_score_thr: expected show_dir as well, got none")
        if self.exported is None and self.backend is not None:
            raise UserError(f"backend: expected none with a file of weights, got {self.backend}")
        of_weights = {"tta": self.tta, "channels_last": not self.channels_last}
        of_weights |= {"allow_partial": self.allow_partial, "unsafe_load": self.unsafe_load}
        if self.exported is not None and (refused := [name for name in of_weights if of_weights[name]]):
            text = f"expected the default with {self.exported}, got {getattr(self, refused[0])}"
            raise UserError(f"{refused[0]}: {text}")

    @property
    def as_json(self) -> bool:
        return str(self.out).endswith(".json")

    def files(self) -> list[Path]:
        """List the files of the predictions."""
        if self.out is None:
            return []
        endings = (".bbox.json", ".segm.json") if self.as_json else (Path(self.out).suffix,)
        return [Path(self.out).with_suffix(ending) for ending in endings]

    def apply(self, cfg: Config, fixed: Collection[str] = ()) -> list[str]:
        """See :meth:`RunOptions.apply`."""
        changes = super().apply(cfg, fixed)
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        if self.metrics:
            for evaluator in _with_argument(evaluators, "metric", "metrics"):
                evaluator["metric"] = list(self.metrics)
        if self.out is not None and self.as_json:
            prefix = str(Path(self.out).with_suffix(""))
            # only the first evaluator: several would write to the same files
            evaluator = _with_argument(evaluators, "outfile_prefix", "out")[0]
            evaluator.update(format_only=self.format_only, outfile_prefix=prefix)
        if self.out is not None and not self.as_json:
            cfg.test_evaluator = [*evaluators, {"type": "DumpDetResults", "out_file_path": str(self.out)}]
        if self.show_dir is not None:
            drawing = dict(cfg.default_hooks.get("visualization") or {"type": "DetVisualizationHook"})
            # absolute: mmdet prepends the work directory to a relative one, once per iteration
            drawing.update(draw=True, test_out_dir=str(Path(self.show_dir).resolve()))
            if self.show_score_thr is not None:
                drawing["score_thr"] = self.show_score_thr
            cfg.default_hooks.visualization = drawing
        if self.tta:
            use_test_time_augmentation(cfg)
        if self.exported is not None:
            cfg.model = {
                "type": "DeployedDetector",
                "path": str(self.exported.resolve()),
                "backend": self.backend,
                "device": self.device,
                "data_preprocessor": cfg.model.data_preprocessor,
                "loader": cfg.test_dataloader,
            }
        return changes


def _with_argument(evaluators: Sequence[dict], argument: str, option: str) -> list[dict]:
    """Return the evaluators whose class has an argument.

    Raises:
        UserError: there is none.
    """
    suitable = [each for each in evaluators if argument in arguments(class_of(each))]
    if not suitable:
        names = ", ".join(str(each.get("type")) for each in evaluators)
        raise UserError(f"{option}: expected a test_evaluator with the argument {argument}, got {names}")
    return suitable


def main_metric(cfg: Config) -> str | None:
    """Return the metric that selects the best checkpoint: the mask AP if it is measured, else the box AP."""
    evaluators = cfg.get("val_evaluator") or []
    prefix = ""
    if isinstance(evaluators, dict) and evaluators.get("dataset_prefixes"):  # a MultiDatasetsEvaluator
        prefix, evaluators = f"{evaluators['dataset_prefixes'][0]}/", evaluators["metrics"]
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if str(evaluator.get("type")).rpartition(".")[2] == "CocoMetric":
            kind = "segm" if "segm" in evaluator.get("metric", "bbox") else "bbox"
            return f"{prefix}{evaluator.get('prefix') or 'coco'}/{kind}_mAP"
    return None


def _set(node: dict, key: str, value: object, owner: str = "") -> str:
    """Set ``node[key]``; return a description of the change, empty if there is none."""
    before, node[key] = node.get(key), value
    return "" if before == value else f"{owner}{key} {before} → {value}"


def _set_epochs(cfg: Config, epochs: int, fixed: Collection[str]) -> list[str]:
    """Set the number of epochs, and scale all settings that count epochs or iterations."""
    before = cfg.train_cfg.get("max_epochs")
    if not before:
        raise UserError(f"epochs: expected a config with train_cfg.max_epochs, got {dict(cfg.train_cfg)}")
    factor = epochs / before

    def scaled(steps: float) -> float:
        return max(1, round(steps * factor)) if 0 < steps < INF else steps

    changes = [_set(cfg.train_cfg, "max_epochs", epochs)]
    if intervals := cfg.train_cfg.get("dynamic_intervals"):  # pairs of first epoch and validation interval
        moved = [(scaled(begin), interval) for begin, interval in intervals]
        changes.append(_set(cfg.train_cfg, "dynamic_intervals", moved))
    for part, keys in STEPS.items() if factor != 1 else ():
        for path, node in dicts(cfg.get(part), part):
            kind = node.get("type", "")
            owner = f"{getattr(kind, '__name__', kind)}."
            for key in (key for key in keys if node.get(key) and f"{path}.{key}" not in fixed):
                steps = node[key]
                new = scaled(steps) if isinstance(steps, int | float) else [*map(scaled, steps)]
                if key == "end":  # mmengine's LinearLR of one iteration never leaves its first factor
                    new = max(new, node.get("begin", 0) + (1 if node.get("by_epoch", True) else 2))
                if new != steps:
                    changes.append(_set(node, key, new, owner))
    return changes


def _set_learning_rate(cfg: Config, lr: float, fixed: Collection[str]) -> list[str]:
    """Set the learning rate, and scale the lowest and highest ones of the schedules with it."""
    optimizer = cfg.optim_wrapper.get("optimizer") or {}
    before = optimizer.get("lr")
    if not before:
        raise UserError("lr: expected a config with optim_wrapper.optimizer.lr, found none")
    changes = [_set(optimizer, "lr", lr)]
    for path, node in dicts(cfg.get("param_scheduler"), "param_scheduler"):
        for key in ("eta_min", "eta_max"):
            is_fixed = f"{path}.{key}" in fixed
            if node.get(key) and not is_fixed and not str(node["type"]).endswith("Momentum"):
                changes.append(_set(node, key, float(f"{node[key] * lr / before:.6g}")))
    return changes


def _stop_early(cfg: Config, patience: int) -> None:
    checkpoint = cfg.default_hooks.get("checkpoint") or {}
    best, main = checkpoint.get("save_best"), main_metric(cfg)
    saved = [each for each in (best if isinstance(best, list) else [best]) if each and each != "auto"]
    monitor = main if main in saved or not saved else saved[0]
    if monitor is None:
        raise UserError(
            "patience: expected a val_evaluator of type CocoMetric, found none; "
            "default_hooks.checkpoint.save_best names another metric"
        )
    if not best:
        checkpoint.update(save_best=monitor, rule="greater")
    rule = checkpoint.get("rule")  # mmengine itself checks the length of a list
    rule = dict(zip(saved, rule, strict=False)).get(monitor) if isinstance(rule, list) else rule
    others = [hook for hook in cfg.get("custom_hooks") or [] if "EarlyStoppingHook" not in str(hook["type"])]
    hook = {"type": "PlateauEarlyStoppingHook", "monitor": monitor, "patience": patience}
    cfg.custom_hooks = [*others, {**hook, "rule": rule}]


def _add_logger(cfg: Config, name: str) -> None:
    if find_spec(name) is None:
        raise UserError(f"logger: expected the package {name} to be installed: pip install {name}")
    visualizer = cfg.get("visualizer") or {"type": "DetLocalVisualizer", "name": "visualizer"}
    backends = visualizer.get("vis_backends") or [{"type": "LocalVisBackend"}]
    others = [backend for backend in backends if backend["type"] != LOGGERS[name]]
    cfg.visualizer = {**visualizer, "vis_backends": [*others, {"type": LOGGERS[name]}]}
