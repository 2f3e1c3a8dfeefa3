"""What a dictionary of a config may contain: its keys, and their values.

Signatures and annotations come first. The tables have what no signature says, and values that Python accepts
although the training then runs with other settings than the config seems to have, or fails late.
"""

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import mmcv.ops

from dcnzoo.openmmlab.config.deformable import SETTINGS, arguments
from dcnzoo.openmmlab.config.tree import Node

# MMDetection 2's key → its type or some keys of its dictionary, and the key of version 3
OLD_KEYS: dict[str, tuple[type | str, str]] = {
    "data": ("samples_per_gpu workers_per_gpu train", "train_dataloader, val_dataloader and test_dataloader"),
    "optimizer": ("type", "optim_wrapper.optimizer"),
    "optimizer_config": ("grad_clip type", "optim_wrapper"),
    "lr_config": ("policy warmup", "param_scheduler"),
    "momentum_config": ("policy", "param_scheduler"),
    "total_epochs": (int, "train_cfg.max_epochs"),
    "total_iters": (int, "train_cfg.max_iters"),
    "runner": ("max_epochs max_iters", "train_cfg"),
    "evaluation": ("interval metric save_best", "val_evaluator and train_cfg.val_interval"),
    "checkpoint_config": ("interval max_keep_ckpts", "default_hooks.checkpoint"),
    "log_config": ("interval hooks", "default_hooks.logger and visualizer"),
    "fp16": ("loss_scale", "optim_wrapper.type='AmpOptimWrapper' and optim_wrapper.loss_scale"),
    "seed": (int, "randomness.seed"),
    "deterministic": (bool, "randomness.deterministic"),
    "resume_from": (str, "resume=True and load_from"),
    "auto_resume": (bool, "resume=True"),
    "gpus": (int, "the environment variable CUDA_VISIBLE_DEVICES"),
}
# names of variables that look like settings → the setting
LIKE_SETTINGS = {
    **dict.fromkeys(("lr", "base_lr", "learning_rate"), "optim_wrapper.optimizer.lr"),
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs"), "train_cfg.max_epochs"),
    "amp": "optim_wrapper.type='AmpOptimWrapper'",
    "batch_size": "train_dataloader.batch_size",
    "checkpoint": "load_from",
    "device": "the environment variable CUDA_VISIBLE_DEVICES",
    "num_classes": "num_classes of the model's heads",
    "num_workers": "train_dataloader.num_workers",
}
# registry → the keys that are removed before its classes are built, besides type and _scope_
REMOVED = {
    "MODELS": {"init_cfg", "bg_cls_weight", *SETTINGS},  # bg_cls_weight: by the DETR heads
    "DATASETS": {"num_batch_per_epoch"},
    "HOOKS": {"priority"},
    "LOOPS": {"by_epoch"},
    "OPTIM_WRAPPERS": {"constructor", "paramwise_cfg"},
    "PARAM_SCHEDULERS": {"convert_to_iter_based"},
    "VISUALIZERS": {"name"},
}
# settings of layers, from which mmcv removes some before it builds the layer
LAYER_SETTINGS = {"norm_cfg", "conv_cfg", "act_cfg", "upsample_cfg", "init_cfg", "dcn"}
# dictionaries without a class → the keys that code reads from them; Python does not notice other keys
READ = {
    "auto_scale_lr": {"base_batch_size", "enable"},
    "custom_imports": {"allow_failed_imports", "imports"},
    "data_prefix": {"anno", "img", "img_path", "seg", "seg_map_path", "sub_data_root"},
    "env_cfg": {"cudnn_benchmark", "dist_cfg", "mp_cfg", "resource_limit"},
    "filter_cfg": {"bbox_min_size", "filter_empty_gt", "min_size"},
    "paramwise_cfg": {
        "bias_decay_mult", "bias_lr_mult", "bypass_duplicate", "custom_keys", "dcn_offset_lr_mult", "depths",
        "dwconv_decay_mult", "flat_decay_mult", "layer_decay_rate", "norm_decay_mult", "offset_lr_scale",
    },
    "tta_cfg": {"max_per_img", "nms"},
}  # fmt: skip

Values = tuple[str, Callable[[float], bool]]  # the expected value, and whether a number is one
COUNT: Values = ("an integer of at least 1", lambda n: n >= 1 and n % 1 == 0)
WHOLE: Values = ("an integer of at least 1", lambda n: isinstance(n, int) and n >= 1)  # not 4.0
COUNT_OR_0: Values = ("an integer of at least 0", lambda n: n >= 0 and n % 1 == 0)
COUNT_OR_ALL: Values = ("an integer of at least 1, or -1", lambda n: n >= -1 and n % 1 == 0)
SIZE: Values = ("a number above 0", lambda n: 0 < n < math.inf)
ABOVE_0: Values = ("a number above 0", lambda n: n > 0)  # also infinity
FACTOR: Values = ("a number of at least 0", lambda n: 0 <= n < math.inf)
SHARE: Values = ("a number from 0 to 1", lambda n: 0 <= n <= 1)
SCORE: Values = ("a number of at most 1", lambda n: n <= 1)
FLAG: Values = ("True or False", lambda n: True)
RULE: Values = ("greater or less", lambda n: False)

# Classes or functions, or names of dictionaries among their arguments; settings; what these may be; the code
# that uses the settings without a check.
TABLE: tuple[tuple[str, str, Values, str], ...] = (
    # mmengine
    ("EpochBasedTrainLoop IterBasedTrainLoop", "max_epochs max_iters val_interval", COUNT, "loops.py"),
    ("DataLoader", "batch_size prefetch_factor", WHOLE, "runner.py: build_dataloader"),
    ("DataLoader", "num_workers timeout", FACTOR, "runner.py: build_dataloader"),
    ("OptimWrapper", "accumulative_counts", COUNT, "optimizer_wrapper.py: should_update"),
    ("clip_grad_norm_ clip_grad_value_", "max_norm clip_value", ABOVE_0, "a factor of gradients"),
    ("Optimizer", "lr weight_decay", FACTOR, "torch.optim"),
    ("paramwise_cfg", "lr_mult decay_mult bias_lr_mult bias_decay_mult norm_decay_mult dcn_offset_lr_mult",
     FACTOR, "default_constructor.py"),
    ("_ParamScheduler", "T_max step_size total_steps total_iters periods", COUNT, "T_max or (end - begin)"),
    ("_ParamScheduler", "begin milestones cooldown patience", COUNT_OR_0, "param_scheduler.py"),
    ("_ParamScheduler", "gamma factor", SIZE, "param_scheduler.py"),
    ("_ParamScheduler", "eta_min eta_min_ratio power", FACTOR, "param_scheduler.py"),
    ("EarlyStoppingHook CheckpointHook ReduceOnPlateauParamScheduler", "rule", RULE, "rule_map[rule]"),
    ("EarlyStoppingHook", "patience", COUNT, "early_stopping_hook.py"),
    ("CheckpointHook", "interval max_keep_ckpts", COUNT_OR_ALL, "hook.py: every_n_epochs"),
    ("LoggerHook DetVisualizationHook EMAHook", "interval", COUNT, "hook.py: every_n_iters"),
    ("PipelineSwitchHook YOLOXModeSwitchHook", "switch_epoch num_last_epochs", COUNT_OR_0, "mmdet.engine"),
    ("LogProcessor", "window_size", COUNT, "log_processor.py"),
    ("auto_scale_lr", "base_batch_size", COUNT, "runner.py: scale_lr"),
    ("auto_scale_lr env_cfg", "enable cudnn_benchmark", FLAG, "runner.py"),
    ("RepeatDataset", "times", COUNT, "dataset_wrapper.py: an empty data set"),
    # mmcv and mmdet: data
    ("filter_cfg", "filter_empty_gt", FLAG, "coco.py: filter_data"),
    ("filter_cfg", "min_size bbox_min_size", FACTOR, "coco.py: filter_data"),
    ("BaseTransform", "scale scales scale_factor crop_size img_scale ratio_range size_divisor", SIZE,
     "processing.py"),
    ("BaseTransform", "prob", SHARE, "processing.py: RandomFlip"),
    ("Normalize ImgDataPreprocessor", "std", SIZE, "a division by zero"),
    ("ImgDataPreprocessor", "pad_size_divisor", COUNT, "data_preprocessor.py"),
    # mmdet: models
    ("AnchorGenerator", "scales ratios strides base_sizes", SIZE, "anchor_generator.py"),
    ("RoIAlign", "output_size", SIZE, "mmcv.ops.roi_align"),
    ("SingleRoIExtractor", "featmap_strides finest_scale", SIZE, "single_level_roi_extractor.py"),
    ("MaxIoUAssigner", "pos_iou_thr neg_iou_thr min_pos_iou", SHARE, "max_iou_assigner.py"),
    ("BaseSampler", "num", COUNT, "random_sampler.py"),
    ("BaseSampler", "pos_fraction", SHARE, "random_sampler.py"),
    ("test_cfg train_cfg", "score_thr mask_thr_binary", SCORE, "bbox_nms.py"),
    ("test_cfg train_cfg", "iou_threshold", SHARE, "mmcv.ops.nms"),
    ("BaseModule", "num_classes in_channels out_channels feat_channels num_outs num_queries roi_feat_size",
     COUNT, "layers without outputs"),
    ("ResNet", "frozen_stages", COUNT_OR_ALL, "resnet.py: _freeze_stages"),
    ("BaseModule", "norm_eval with_cp stage_with_dcn", FLAG, "any text counts as true"),
    ("Module", "loss_weight gamma", FACTOR, "losses that grow"),
)  # fmt: skip
_VALUES = {
    (owner, key): values
    for owners, keys, values, _ in TABLE
    for owner in owners.split()
    for key in keys.split()
}
# words of annotations → types of the values that they accept. Lists too: MMDetection often omits them
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("int", "float", "bool", "Number"), (int, float, list, tuple)),
    **dict.fromkeys(("str", "Path", "PathLike"), (str,)),
    **dict.fromkeys(("list", "tuple", "List", "Tuple", "Sequence"), (int, float, list, tuple, Mapping)),
    **dict.fromkeys(("dict", "Dict", "ConfigDict", "Config", "Mapping"), (list, tuple, Mapping)),
    **dict.fromkeys(("Union", "Optional", "None", "NoneType"), ()),
}


@functools.cache
def _of_detectors() -> set[str]:
    """Return the keys of ``train_cfg`` and ``test_cfg``, by benchmarks/coverage/collect_keys.py."""
    table = json.loads(Path(__file__).with_name("known_keys.json").read_text(encoding="utf-8"))
    return {*" ".join(table["keys"]).split()}


def known_keys(node: Node) -> set[str]:
    """Return all keys that a dictionary may have; empty if they are not known."""
    last, outer = node.names[-1], " ".join(node.names[:-1])
    if not node.inner:
        keys = {*node.arguments()[0]}
        keys = keys.union(*(REMOVED.get(name, ()) for name in node.registries)) if keys else keys
    elif "custom_keys" in outer:
        keys = {"lr_mult", "decay_mult"}
    elif last.endswith("nms"):
        function = getattr(mmcv.ops, str(node.content.get("type")), mmcv.ops.nms)
        keys = {"split_thr", *arguments(function)[0], *arguments(mmcv.ops.batched_nms)[0]}
    elif reads_settings(node):
        keys = _of_detectors()
    else:
        keys = READ.get(last, set())
    return keys | {"type", "_scope_"} if keys else keys


def reads_settings(node: Node) -> bool:
    """Whether a dictionary is in ``train_cfg`` or ``test_cfg`` of a model, whose keys any head may read."""
    return bool(node.inner and re.fullmatch("(semi_)?(train|test)_cfg", node.names[0]))


def refusal(node: Node, key: str, value: object) -> str:
    """Return why a value cannot be right; empty if nothing is known against it."""
    if not node.is_published:  # the names may mean something else in a user's own class
        return ""
    rows = [_VALUES[name, key] for name in node.names if (name, key) in _VALUES]
    expected = next((values[0] for values in rows if _is_refused(value, values)), "")
    argument = node.arguments()[0].get(key)
    if argument is not None and not expected:
        expected = (
            "" if accepts(argument.annotation, value) else inspect.formatannotation(argument.annotation)
        )
    return f"expected {expected}, got {value!r}" if expected else ""


def _is_refused(value: object, values: Values) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_refused(each, values) for each in value)
    if isinstance(value, str):
        return values is not RULE or value not in ("greater", "less")
    if isinstance(value, bool):
        return values is not FLAG
    return isinstance(value, int | float) and not values[1](value)


def accepts(annotation: object, value: object) -> bool:
    """Whether an argument with this annotation may have a value. An unknown word accepts everything."""
    if not isinstance(value, int | float | str | list | tuple | Mapping):
        return True
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    words = [word.rpartition(".")[2] for word in re.findall(r"[^\s\[\],|]+", text)]
    types = [kind for word in words for kind in _TYPES.get(word, (object,))]
    return not types or isinstance(value, tuple(types))
