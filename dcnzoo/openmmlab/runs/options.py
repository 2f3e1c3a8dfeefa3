"""Write the options of a run into a config."""

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, ConfigDict

from dcnzoo.openmmlab.config.tree import class_of, dicts
from dcnzoo.openmmlab.hooks import DEFAULT_HOOKS
from dcnzoo.openmmlab.models.tta import use_test_time_augmentation
from dcnzoo.openmmlab.options import LOGGERS, RunOptions, TestOptions, TrainOptions
from dcnzoo.openmmlab.runs.device import require_device
from dcnzoo.openmmlab.runs.epochs import set_epochs, set_value
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import expanded
from dcnzoo.utils.signatures import arguments


def write_options(cfg: Config, options: RunOptions, fixed: Collection[str] = ()) -> list[str]:
    """Write the options of a run into a config, and add dcnzoo's hooks; return a text for each change.

    Args:
        fixed: paths of settings that stay as they are when others scale with the epochs or learning rate.

    Raises:
        UserError: ``work_dir`` is a file; the config does not have the setting of an option;
            ``auto_scale_lr`` without a base batch size; or the package of ``logger`` is not installed.
    """
    changes = _write_run(cfg, options, fixed)
    if isinstance(options, TrainOptions):
        changes += _write_training(cfg, options, fixed)
    if isinstance(options, TestOptions):
        _write_test(cfg, options)
    if options.launcher != "none":
        _share_results(cfg)
    return [change for change in changes if change]


def _write_run(cfg: Config, options: RunOptions, fixed: Collection[str]) -> list[str]:
    changes = [set_value(cfg, "launcher", options.launcher)] if "launcher" in cfg else []
    cfg.launcher = options.launcher
    folder = options.work_dir or cfg.get("work_dir") or Path("work_dirs", Path(cfg.filename).stem)
    cfg.work_dir = str(expanded(folder))
    if options.launcher == "none" and (cfg.get("strategy") or {}).get("type") == "DDPStrategy":
        cfg.pop("strategy")  # needs a launcher; in a single process, the runner uses its default strategy
    cfg.default_hooks = cfg.get("default_hooks") or {}
    hooks, loop = cfg.default_hooks, cfg.get("train_cfg") or {}
    for name, hook in DEFAULT_HOOKS.items():
        hooks.setdefault(name, ConfigDict(hook))
    kind = hooks.checkpoint.get("type") if isinstance(hooks.checkpoint, dict) else None
    if str(kind).rpartition(".")[2] == "CheckpointHook":
        hooks.checkpoint["type"] = kind = "AtomicCheckpointHook"
    if kind == "AtomicCheckpointHook" and loop.get("max_iters") and not loop.get("max_epochs"):
        changes += _save_by_iterations(hooks.checkpoint, loop, fixed)
    hooks.pop("channels_last", None)  # an earlier training may have written it into its config
    detector = cfg.get("default_scope", "mmdet") == "mmdet"  # other packages' layers may call x.view
    is_suited = options.channels_last and detector and options.launcher == "none"
    if is_suited and require_device(options.torch_device).type == "cpu":
        hooks.channels_last = {"type": "ChannelsLastHook"}
    return changes


def _save_by_iterations(hook: dict, loop: dict, fixed: Collection[str]) -> list[str]:
    """Let a checkpoint hook without ``by_epoch`` count what the loop counts; mmengine's would count epochs.

    Its interval is then a number of iterations: 1, that of MMDetection's default hooks, becomes the loop's.
    """
    if "by_epoch" in hook:
        return []
    hook["by_epoch"] = False
    changes = ["CheckpointHook.by_epoch True → False"]  # True is mmengine's default
    if hook.get("interval") == 1 and "default_hooks.checkpoint.interval" not in fixed:
        interval = loop.get("val_interval", 1000)  # as mmengine's loop
        changes.append(set_value(hook, "interval", interval, "CheckpointHook."))
    return changes


def _write_training(cfg: Config, options: TrainOptions, fixed: Collection[str]) -> list[str]:
    changes = []
    if options.amp:
        changes.append(set_value(cfg.optim_wrapper, "type", "AmpOptimWrapper", "optim_wrapper."))
    if options.auto_scale_lr:
        cfg.auto_scale_lr = {**(cfg.get("auto_scale_lr") or {}), "enable": True}
    scaling = cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    if scaling.get("enable") and (type(base) is not int or base < 1):
        raise UserError(
            "auto_scale_lr.base_batch_size: expected the batch size for the config's learning rate, ≥ 1, "
            f"got {base}"
        )
    if options.epochs is not None:
        changes += set_epochs(cfg, options.epochs, fixed)
    if options.batch_size is not None:
        changes.append(set_value(cfg.train_dataloader, "batch_size", options.batch_size))
        sampler = cfg.train_dataloader.get("sampler") or {}
        if "batch_size" in sampler:  # of several sources
            changes.append(set_value(sampler, "batch_size", options.batch_size, "sampler."))
    if options.lr is not None:
        changes += _set_learning_rate(cfg, options.lr, fixed)
    if options.seed is not None:
        cfg.randomness = cfg.get("randomness") or {}
        changes.append(set_value(cfg.randomness, "seed", options.seed))
    if options.patience is not None:
        _stop_early(cfg, options.patience)
    if options.logger is not None:
        _add_logger(cfg, options.logger)
    return changes


def _write_test(cfg: Config, options: TestOptions) -> None:
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    if options.metrics:
        for evaluator in _with_argument(evaluators, "metric", "metrics"):
            evaluator["metric"] = list(options.metrics)
    if options.out is not None and options.as_json:
        prefix = str(expanded(options.out).with_suffix(""))
        # only the first evaluator: several would write to the same files
        evaluator = _with_argument(evaluators, "outfile_prefix", "out")[0]
        evaluator.update(format_only=options.format_only, outfile_prefix=prefix)
    if options.out is not None and not options.as_json:
        dump = {"type": "DumpDetResults", "out_file_path": str(expanded(options.out))}
        cfg.test_evaluator = [*evaluators, dump]
    if options.show_dir is not None:
        drawing = dict(cfg.default_hooks.get("visualization") or {"type": "DetVisualizationHook"})
        # absolute: mmdet prepends the work directory to a relative one, once per iteration
        drawing.update(draw=True, test_out_dir=str(expanded(options.show_dir).resolve()))
        if options.show_score_thr is not None:
            drawing["score_thr"] = options.show_score_thr
        cfg.default_hooks.visualization = drawing
    if options.tta:
        use_test_time_augmentation(cfg)
    if options.exported is not None:
        cfg.model = {
            "type": "DeployedDetector",
            "path": str(options.exported.resolve()),
            "backend": options.backend,
            "device": options.device,
            "data_preprocessor": cfg.model.data_preprocessor,
            "loader": cfg.test_dataloader,
        }


def _share_results(cfg: Config) -> None:
    """Let metrics exchange their results through the process group.

    By default, they write files to the current folder, which machines may not share.
    """
    for part in ("val_evaluator", "test_evaluator"):
        for _, metric in dicts(cfg.get(part)):
            if "collect_dir" not in metric and "collect_device" in arguments(class_of(metric)):
                metric.setdefault("collect_device", "gpu")  # the process group, also without a GPU


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


def _set_learning_rate(cfg: Config, lr: float, fixed: Collection[str]) -> list[str]:
    """Set the learning rate, and scale the lowest and highest ones of the schedules with it."""
    optimizer = cfg.optim_wrapper.get("optimizer") or {}
    before = optimizer.get("lr")
    if not before:
        raise UserError("lr: expected a config with optim_wrapper.optimizer.lr, found none")
    changes = [set_value(optimizer, "lr", lr)]
    for path, node in dicts(cfg.get("param_scheduler"), "param_scheduler"):
        for key in ("eta_min", "eta_max"):
            is_fixed = f"{path}.{key}" in fixed
            if node.get(key) and not is_fixed and not str(node["type"]).endswith("Momentum"):
                changes.append(set_value(node, key, float(f"{node[key] * lr / before:.6g}")))
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
