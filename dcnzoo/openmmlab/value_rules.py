"""Which values a setting may have: by annotations, and by a table for what no annotation says.

Each row of the table is a mistake that Python does not notice: the training runs, with other settings than
the config seems to have, or fails long after its start.
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from dcnzoo.openmmlab.known_keys import Place, class_of, dicts
from dcnzoo.utils.findings import Finding


@dataclass(frozen=True)
class Values:
    """The values of a setting: numbers in a range, or some texts. Lists contain such values.

    Attributes:
        text: what a message expects.
        low, high: both are allowed, unless ``above`` excludes the lower one.
        names: the texts.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    integer: bool = False
    names: tuple[str, ...] = ()

    def refuses(self, value: object) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self.refuses, value))
        if isinstance(value, str):
            return value not in self.names
        if isinstance(value, bool) or not isinstance(value, int | float):
            return isinstance(value, bool) and self.integer
        small = value <= self.low if self.above else value < self.low
        return small or not value <= self.high or (self.integer and value != int(value))


COUNT = Values("an integer of at least 1", 1, integer=True)
COUNT_OR_0 = Values("an integer of at least 0", 0, integer=True)
COUNT_OR_ALL = Values("an integer of at least 1, or -1", -1, integer=True)
SIZE = Values("a number above 0", 0, above=True)
SCALE = Values("dynamic or a number above 0", 0, above=True, names=("dynamic",))
FACTOR = Values("a number of at least 0", 0)
SHARE = Values("a number from 0 to 1", 0, 1)
SCORE = Values("a number of at most 1", high=1)
FLAG = Values("True or False")
RULE = Values("greater or less", names=("greater", "less"))

# Classes or functions, or the names of dictionaries inside theirs → settings, their values, and the code that
# uses them without a check.
TABLE: tuple[tuple[str, str, Values, str], ...] = (
    # mmengine
    ("EpochBasedTrainLoop IterBasedTrainLoop", "max_epochs max_iters val_interval", COUNT, "loops.py"),
    ("DataLoader", "batch_size prefetch_factor", COUNT, "runner.py: build_dataloader"),
    ("DataLoader", "num_workers timeout", FACTOR, "runner.py: build_dataloader"),
    ("DataLoader", "persistent_workers drop_last pin_memory", FLAG, "runner.py: build_dataloader"),
    ("OptimWrapper", "accumulative_counts", COUNT, "optimizer_wrapper.py: should_update"),
    ("AmpOptimWrapper", "loss_scale", SCALE, "amp_optimizer_wrapper.py: GradScaler"),
    ("clip_grad clip_grad_norm_ clip_grad_value_", "max_norm clip_value", SIZE, "a factor of gradients"),
    ("Optimizer", "lr weight_decay", FACTOR, "torch.optim"),
    ("paramwise_cfg", "lr_mult decay_mult bias_lr_mult bias_decay_mult norm_decay_mult", FACTOR,
     "default_constructor.py"),
    ("paramwise_cfg", "dwconv_decay_mult flat_decay_mult dcn_offset_lr_mult offset_lr_scale", FACTOR,
     "default_constructor.py"),
    ("_ParamScheduler", "T_max step_size total_steps total_iters periods", COUNT, "T_max or (end - begin)"),
    ("_ParamScheduler", "begin milestones cooldown patience", COUNT_OR_0, "param_scheduler.py"),
    ("_ParamScheduler", "gamma factor", SIZE, "param_scheduler.py"),
    ("_ParamScheduler", "eta_min eta_min_ratio power", FACTOR, "param_scheduler.py"),
    ("_ParamScheduler", "by_epoch convert_to_iter_based", FLAG, "param_scheduler.py"),
    ("EarlyStoppingHook CheckpointHook ReduceOnPlateauParamScheduler", "rule", RULE, "rule_map[rule]"),
    ("EarlyStoppingHook", "patience", COUNT, "early_stopping_hook.py"),
    ("CheckpointHook", "interval max_keep_ckpts", COUNT_OR_ALL, "hook.py: every_n_epochs"),
    ("LoggerHook DetVisualizationHook EMAHook", "interval", COUNT, "hook.py: every_n_iters"),
    ("PipelineSwitchHook YOLOXModeSwitchHook", "switch_epoch num_last_epochs", COUNT_OR_0, "mmdet.engine"),
    ("LogProcessor", "window_size", COUNT, "log_processor.py"),
    ("auto_scale_lr", "base_batch_size", COUNT, "runner.py: scale_lr"),
    ("auto_scale_lr env_cfg", "enable cudnn_benchmark", FLAG, "runner.py"),
    ("RepeatDataset", "times", COUNT, "dataset_wrapper.py: an empty data set"),
    ("filter_cfg BaseDataset", "filter_empty_gt test_mode lazy_init", FLAG, "base_dataset.py"),
    # mmcv and mmdet: data
    ("filter_cfg", "min_size bbox_min_size", FACTOR, "coco.py: filter_data"),
    ("BaseTransform", "scale scales scale_factor crop_size img_scale ratio_range size_divisor", SIZE,
     "processing.py"),
    ("BaseTransform", "prob", SHARE, "processing.py: RandomFlip"),
    ("BaseTransform", "keep_ratio to_float32 to_rgb pad_to_square recompute_bbox", FLAG, "processing.py"),
    ("BaseTransform", "with_bbox with_label with_mask with_seg poly2mask", FLAG, "loading.py"),
    ("Normalize ImgDataPreprocessor", "std", SIZE, "a division by zero"),
    ("ImgDataPreprocessor", "pad_size_divisor", COUNT, "data_preprocessor.py"),
    ("ImgDataPreprocessor", "bgr_to_rgb rgb_to_bgr pad_mask pad_seg", FLAG, "data_preprocessor.py"),
    # mmdet: models
    ("AnchorGenerator", "scales ratios strides base_sizes octave_base_scale scales_per_octave", SIZE,
     "anchor_generator.py"),
    ("RoIAlign roi_layer", "output_size", SIZE, "mmcv.ops.roi_align"),
    ("SingleRoIExtractor", "featmap_strides finest_scale", SIZE, "single_level_roi_extractor.py"),
    ("MaxIoUAssigner", "pos_iou_thr neg_iou_thr min_pos_iou", SHARE, "max_iou_assigner.py"),
    ("BaseSampler", "num", COUNT, "random_sampler.py"),
    ("BaseSampler", "pos_fraction", SHARE, "random_sampler.py"),
    ("test_cfg train_cfg", "score_thr mask_thr_binary", SCORE, "bbox_nms.py"),
    ("test_cfg train_cfg", "iou_threshold", SHARE, "mmcv.ops.nms"),
    ("BaseModule", "num_classes in_channels out_channels feat_channels num_outs num_queries", COUNT,
     "layers without outputs"),
    ("BaseModule", "fc_out_channels conv_out_channels roi_feat_size", COUNT, "layers without outputs"),
    ("ResNet", "frozen_stages", COUNT_OR_ALL, "resnet.py: _freeze_stages"),
    ("BaseModule _NormBase GroupNorm", "norm_eval with_cp requires_grad use_sigmoid stage_with_dcn", FLAG,
     "resnet.py"),
    ("BaseModule", "reg_class_agnostic deep_stem avg_down zero_init_residual", FLAG, "resnet.py"),
    ("Module", "loss_weight gamma", FACTOR, "losses that grow"),
)  # fmt: skip
_ROWS: dict[str, list[tuple[str, Values]]] = {}
for owners, keys, values, _ in TABLE:
    for owner in owners.split():
        for key in keys.split():
            _ROWS.setdefault(key, []).append((owner, values))
_MONITORS = {"CheckpointHook": "save_best", "EarlyStoppingHook": "monitor"}
# words of annotations → the kinds of values that they accept. Another word accepts everything
_WORDS = {
    **dict.fromkeys(("int", "float", "bool", "Number"), "a number"),
    **dict.fromkeys(("str", "Path", "PathLike"), "a text"),
    **dict.fromkeys(("list", "tuple", "List", "Tuple", "Sequence"), "a list"),
    **dict.fromkeys(("dict", "Dict", "ConfigDict", "Config", "Mapping"), "settings"),
    **dict.fromkeys(("Union", "Optional", "None", "NoneType"), ""),
}
# Types of values → kinds that an annotation must accept. MMDetection's annotations often leave out lists
_FITTING = (
    (Mapping, {"settings", "a list"}),
    ((list, tuple), {"settings", "a list", "a number"}),
    (str, {"a text"}),
    ((int, float), {"a number", "a list"}),
)


def refusal(place: Place, key: str, value: object) -> str:
    """Return why a value cannot be right; empty if nothing is known against it."""
    if not place.is_published:  # the names may mean something else in a user's own class
        return ""
    expected = ""
    owners = place.inner.split(".") if place.inner else place.bases
    for owner, values in _ROWS.get(key, ()):
        if owner in owners and values.refuses(value):
            expected = values.text
    argument = place.arguments()[0].get(key)
    if argument is not None and not expected:
        kinds = accepted(argument.annotation)
        fitting = next((fitting for types, fitting in _FITTING if isinstance(value, types)), kinds)
        expected = " or ".join(sorted(kinds)) if kinds.isdisjoint(fitting) else ""
    return f"expected {expected}, got {value!r}" if expected else ""


def accepted(annotation: object) -> set[str]:
    """Return the kinds of values that an annotation accepts; none if it may accept anything."""
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    text = re.sub(r"[\w.]+\.(\w+)", r"\1", text)  # typing.Union, mmengine.config.config.ConfigDict
    containers = r"\b(list|tuple|dict|List|Tuple|Dict|Sequence|Mapping)\[[^\[\]]*\]"
    while (shorter := re.sub(containers, r"\1", text)) != text:
        text = shorter
    kinds = {_WORDS.get(word, "?") for word in re.findall(r"[^\s\[\],|]+", text)} - {""}
    return set() if "?" in kinds else kinds


def wrong_monitors(cfg: Config) -> Iterator[Finding]:
    """Yield monitors of hooks that no metric of the validation gives, as far as their names are known."""
    metrics = cfg.get("val_evaluator") or []
    metrics = metrics if isinstance(metrics, list | tuple) else [metrics]
    patterns = [_metric_names(metric) for metric in metrics if isinstance(metric, Mapping)]
    if not patterns or not all(patterns):
        return
    for part in ("default_hooks", "custom_hooks"):
        for path, hook in dicts(cfg.get(part), part):
            for base in getattr(class_of(hook, "HOOKS"), "__mro__", ()):
                key = _MONITORS.get(base.__name__, "")
                values = hook.get(key) or ()
                for value in (values,) if isinstance(values, str) else values:
                    if value != "auto" and not any(re.fullmatch(each, str(value)) for each in patterns):
                        expected = " or ".join(pattern.replace("\\", "") for pattern in patterns)
                        text = f"expected a metric of val_evaluator, {expected}, got {value!r}"
                        yield Finding(f"{path}.{key}", text)


def _metric_names(metric: Mapping) -> str:
    """Return a pattern for the names that a metric gives; empty if only an evaluation shows them."""
    kind: Any = class_of(metric, "METRICS")
    default = getattr(kind, "default_prefix", None)
    if not default:
        return ""
    prefix, names = re.escape(metric.get("prefix") or default), metric.get("metric", "bbox")
    names = names if isinstance(names, list | tuple) else [str(names)]
    if kind.__name__ != "CocoMetric" or metric.get("metric_items") or not {"bbox", "segm"}.issuperset(names):
        return f"{prefix}/.+"
    items = f"({'|'.join(names)})_mAP(_50|_75|_s|_m|_l)?"
    return f"{prefix}/({items}|.+_precision)" if metric.get("classwise") else f"{prefix}/{items}"
