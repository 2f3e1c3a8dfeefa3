"""Keys and values of a config that no class refuses when it is built.

Values are compared with annotations and defaults; :data:`VALUES` has those that Python accepts, somebody
reads, and that train otherwise.
"""

import inspect
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from dcnzoo.openmmlab.config.deformable import arguments
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.config.read import (
    SIZES,
    is_published_key,
    published_models,
    published_numbers,
    weights_of_backbone,
)
from dcnzoo.openmmlab.config.tree import Node, class_of
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import nearest

Values = tuple[str, Callable[[float], bool]]  # the expected value, and whether a number is one
COUNT: Values = ("an integer of at least 1", lambda n: n >= 1 and n % 1 == 0)
COUNT_OR_0: Values = ("an integer of at least 0", lambda n: n >= 0 and n % 1 == 0)
COUNT_OR_ALL: Values = ("an integer of at least 1, or -1", lambda n: n >= -1 and n % 1 == 0)
ONE_OR_ALL: Values = ("an integer of at least 1, or -1", lambda n: (n >= 1 and n % 1 == 0) or n == -1)
SIZE: Values = ("a number above 0", lambda n: n > 0)
FACTOR: Values = ("a number of at least 0", lambda n: 0 <= n < math.inf)
SHARE: Values = ("a number from 0 to 1", lambda n: 0 <= n <= 1)
PIXELS: Values = ("pixels, at least 32", lambda n: n >= 32)
SCORE: Values = ("a number below 1", lambda n: n < 1)
INSIDE: Values = ("a number between 0 and 1", lambda n: 0 < n < 1)

# classes, or names of dictionaries among their arguments; settings; what these may be
VALUES: tuple[tuple[str, str, Values], ...] = (
    ("EpochBasedTrainLoop IterBasedTrainLoop train_cfg OptimWrapper optim_wrapper LogProcessor log_processor",
     "max_epochs max_iters val_interval accumulative_counts window_size", COUNT),
    ("_ParamScheduler auto_scale_lr RepeatDataset ImgDataPreprocessor BaseSampler BaseModule",
     "T_max step_size total_steps total_iters periods base_batch_size times pad_size_divisor num num_classes "
     "in_channels out_channels feat_channels num_outs num_queries roi_feat_size", COUNT),
    ("EarlyStoppingHook LoggerHook DetVisualizationHook EMAHook", "interval patience", COUNT),
    ("_ParamScheduler randomness mp_cfg PipelineSwitchHook YOLOXModeSwitchHook", "begin milestones cooldown "
     "patience seed opencv_num_threads switch_epoch num_last_epochs", COUNT_OR_0),
    ("CheckpointHook ResNet", "interval max_keep_ckpts frozen_stages", COUNT_OR_ALL),
    ("_ParamScheduler clip_grad", "gamma factor start_factor max_norm clip_value", SIZE),
    ("AnchorGenerator RoIAlign ImgDataPreprocessor BaseTransform train_cfg", "neg_pos_ratio scales ratios "
     "strides base_sizes output_size std scale scale_factor crop_size img_scale ratio_range size_divisor",
     SIZE),
    ("Optimizer paramwise_cfg _ParamScheduler filter_cfg Module", "lr weight_decay lr_mult decay_mult "
     "bias_lr_mult bias_decay_mult norm_decay_mult dcn_offset_lr_mult eta_min eta_min_ratio power min_size "
     "loss_weight gamma", FACTOR),
    ("MaxIoUAssigner BaseTransform test_cfg train_cfg BaseMetric BaseSampler BaseModule",
     "pos_iou_thr neg_iou_thr min_pos_iou min_ious initial_iou iou_threshold prob iou_thrs pos_fraction "
     "drop_path_rate", SHARE),
    ("FocalLoss", "alpha", INSIDE),
    ("test_cfg train_cfg Optimizer BaseSampler", "floor_thr score_thr conf_thr mask_thr_binary momentum",
     SCORE),
    ("test_cfg train_cfg", "max_per_img", ONE_OR_ALL),
    ("BatchSyncRandomResize", "random_size_range", PIXELS),
)  # fmt: skip
# limits, as multiples of the smallest and the largest published number; how many of these are needed, and
# how many different ones
_LEAST, _MOST, _KNOWN, _DIFFERENT = 1 / 100, 4, 20, 4
_LEVELS = 8  # of maps, at most
_LONGEST = 12  # times as long as wide; DETR has 400 × 4200
_PIXELS = "data_preprocessor.mean"  # and std
# parts in which no text is a number, True or False
_NUMBERS = ("auto_scale_lr", "env_cfg", "model", "optim_wrapper", "param_scheduler", "train_cfg")
_NUMBER = re.compile(r"True|False|-?\d*\.?\d+(e-?\d+)?")
_FLAGS = {"true", "false", "yes", "no", "on", "off", "none", "0", "1"}  # texts, which all count as true
# words of annotations → types of the values that they accept. Lists too: MMDetection often omits them
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("int", "float", "bool", "Number"), (int, float, list, tuple)),
    **dict.fromkeys(("str", "Path", "PathLike"), (str,)),
    **dict.fromkeys(("list", "tuple", "List", "Tuple", "Sequence"), (int, float, list, tuple, Mapping)),
    **dict.fromkeys(("dict", "Dict", "ConfigDict", "Config", "Mapping"), (list, tuple, Mapping)),
    **dict.fromkeys(("Union", "Optional", "None", "NoneType"), ()),
}


def wrong_settings(node: Node) -> Iterator[Finding]:
    """Yield the settings of a dictionary that are known to be wrong."""
    if not is_published(node.kind):  # the names may mean something else in a user's own class
        return
    low, high = (node.content.get(f"{name}_iou_thr") for name in ("neg", "pos"))
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        text = f"expected at most pos_iou_thr, {high}, got {low}"
        yield Finding(f"{node.path}.neg_iou_thr", text, stops=False)
    for key in {"regress_ranges", "scale_ranges"} & node.content.keys():
        ranges = node.content[key] if isinstance(node.content[key], list | tuple) else ()
        are_pairs = all(isinstance(each, list | tuple) and len(each) == 2 for each in ranges)
        for (_, end), (start, _) in itertools.pairwise(ranges) if are_pairs else ():
            if isinstance(start, int | float) and isinstance(end, int | float) and start > end:
                text = f"expected ranges without a gap, got none for {end} to {start}"
                yield Finding(f"{node.path}.{key}", text, stops=False)
    losses = [node.content.get(f"{start}loss_cls") for start in ("initial_", "")]  # of the same scores
    activated = [each.get("activated", False) for each in losses if isinstance(each, Mapping)]
    if len(activated) == 2 and activated[0] != activated[1]:
        text = f"expected {activated[0]}, as in initial_loss_cls, got {activated[1]}"
        yield Finding(f"{node.path}.loss_cls.activated", text, stops=False)
    candidates, most = (node.content.get(name) for name in ("nms_pre", "max_per_img"))
    if isinstance(candidates, int) and isinstance(most, int) and 0 < candidates * _LEVELS < most:
        text = f"expected candidates for max_per_img, {most}, got {candidates} per level"
        yield Finding(f"{node.path}.nms_pre", text, stops=False)
    mean, is_rgb = node.content.get("mean"), node.content.get("bgr_to_rgb", False)
    ends = mean[::2] if isinstance(mean, list | tuple) and "ImgDataPreprocessor" in node.names else ()
    are_numbers = len(ends) == 2 and all(isinstance(number, int | float) for number in ends)
    if are_numbers and (ends[0] < ends[1] if is_rgb else ends[0] > ends[1]):
        text = f"expected the mean of {'red' if is_rgb else 'blue'} first, as bgr_to_rgb={is_rgb}"
        yield Finding(f"{node.path}.mean", f"{text}, got {mean}", stops=False)
    if node.path == "model":
        yield from _other_weights(node.content)
    for key in SIZES & node.content.keys() if "BaseTransform" in node.names else ():
        sizes = node.content[key] if isinstance(node.content[key], list | tuple) else ()
        for size in sizes if all(isinstance(each, list | tuple) for each in sizes) else [sizes]:
            are_sides = len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
            if are_sides and max(size) > _LONGEST * min(size):
                text = f"expected sides that differ by less than a factor of {_LONGEST}, got {size}"
                yield Finding(f"{node.path}.{key}", text, stops=False)
    known, others = ({}, "refused") if node.keys or node.kind is None else arguments(node.kind)
    for key, value in node.content.items():
        if text := _wrong_value(node, key, value, known.get(key)):
            yield Finding(f"{node.path}.{key}", text)
        default = known[key].default if key in known else None
        if isinstance(default, dict) and "type" not in default and isinstance(value, Mapping):
            for name in value.keys() - default.keys():
                if near := nearest(str(name), default.keys() - value.keys(), 0.7):
                    text = f"expected {near}, got an unknown key"
                    yield Finding(f"{node.path}.{key}.{name}", text, "key", stops=False)
        # those that are refused are errors when it is built
        if others == "refused" or key in {"type", "_scope_", "init_cfg", *known}:
            continue
        close = nearest(key, known, 0.8)
        is_older_name = close and is_published_key(node.path.rpartition(".")[2], key)
        if close and not is_older_name and not re.match(rf"{close}[_\d]", key):
            yield Finding(f"{node.path}.{key}", f"expected {close}, got an unknown key", "key")


def _other_weights(model: Mapping) -> Iterator[Finding]:
    """Yield settings that depend on a backbone's weights, and that no published config with these has."""
    (file, _), own = weights_of_backbone(model), _of_weights(model)
    if "://" not in file:  # a copy, perhaps converted, whose values are compared with the parameters
        own = {key: own[key] for key in own.keys() & {_PIXELS, "backbone.style"}}
    numbers = {
        each for (_, key), known in published_numbers().items() for each in known if key in ("mean", "std")
    }
    if not numbers.issuperset(itertools.chain(*own.get(_PIXELS, ()))):
        own.pop(_PIXELS)  # the user's own
    known = defaultdict[str, Counter](Counter)
    for each in published_models(file):
        for key, value in _of_weights(each).items():
            known[key][value] += 1
        if all(value in known[key] for key, value in own.items()):
            return
    for key in own.keys() & known.keys():
        if own[key] not in known[key]:
            ((expected, _),) = known[key].most_common(1)
            text = f"expected {expected!r}, as published configs with {file}, got {own[key]!r}"
            yield Finding(f"model.{key}", text, stops=False)


def _of_weights(model: Mapping) -> dict[str, Any]:
    """Return the settings that depend on a backbone's weights: of pixels, and how it reads and uses them."""
    file, init = weights_of_backbone(model)
    preprocessor, settings = model.get("data_preprocessor"), dict[str, Any]()
    values = [preprocessor.get(key) for key in ("mean", "std")] if isinstance(preprocessor, Mapping) else []
    pixels = [tuple(each) for each in values if isinstance(each, list | tuple)]
    if len(pixels) == 2:
        settings[_PIXELS] = tuple(pixels)
    if file:
        settings["backbone.init_cfg.prefix"] = init.get("prefix")
        kind = class_of(model["backbone"])
        arguments_of = arguments(kind)[0] if kind else {}
        for key in {"convert_weights", "style"} & arguments_of.keys():
            settings[f"backbone.{key}"] = model["backbone"].get(key, arguments_of[key].default)
    return settings


def unusual_numbers(node: Node, keys: Collection[str]) -> Iterator[Finding]:
    """Yield numbers far below or above those that published configs choose in the same place, and 0.

    Counts are left out: settings whose published values are all integers. So are values of pixels, whose unit
    the data choose.

    Args:
        keys: of the settings to compare.
    """
    if not is_published(node.kind) or node.path.startswith("model.data_preprocessor"):
        return
    owner = str(node.content.get("type") or node.path.rpartition(".")[2])
    for key, value in node.content.items():
        known = published_numbers().get((owner, key), []) if key in keys else []
        numbers = value if isinstance(value, list | tuple) else [value]
        numbers = [number for number in numbers if type(number) in (int, float) and number != math.inf]
        least, most = min(known, default=0), max(known, default=0)
        is_measured = any(number % 1 for number in known)
        is_zero = numbers == [0] and least > 0 and node.path.startswith("model.") and "drop" not in key
        if is_measured and is_zero:
            text = f"expected {least:g} to {most:g}, as in published configs, of which none has 0"
            yield Finding(f"{node.path}.{key}", text, stops=False)
        if len(known) < _KNOWN or len({*known}) < _DIFFERENT or not is_measured:
            continue
        if any(number and not min(least, _LEAST * least) <= number <= _MOST * most for number in numbers):
            text = f"expected about {least:g} to {most:g}, as in published configs, got {value}"
            yield Finding(f"{node.path}.{key}", text, stops=False)


def _wrong_value(node: Node, key: str, value: object, argument: inspect.Parameter | None) -> str:
    """Return why a value cannot be right; empty if nothing is known against it."""
    for owners, keys, (expected, fits) in VALUES:
        applies = key in keys.split() and not {*owners.split()}.isdisjoint(node.names)
        if applies and not _fits(value, fits):
            return f"expected {expected}, got {value!r}"
    takes_text = argument and ("str" in str(argument.annotation) or isinstance(argument.default, str))
    has_numbers = node.path.startswith(_NUMBERS) or "filter_cfg" in node.keys
    if isinstance(value, str) and has_numbers and not takes_text and _NUMBER.fullmatch(value):
        return f"expected {value}, got the text {value!r}"
    if argument is None or accepts(argument, value):
        return ""
    kind = argument.annotation if argument.annotation is not argument.empty else type(argument.default)
    return f"expected {inspect.formatannotation(kind)}, got {value!r}"


def _fits(value: object, fits: Callable[[float], bool]) -> bool:
    """Whether a value, or each in a list, is a number that fits."""
    if isinstance(value, list | tuple):
        return all(_fits(each, fits) for each in value)
    if isinstance(value, bool | str):
        return False
    return not isinstance(value, int | float) or fits(value)


def accepts(argument: inspect.Parameter, value: object) -> bool:
    """Whether an argument may have a value, by its annotation, or by a default that is True or False.

    An unknown word in the annotation accepts everything.
    """
    if not isinstance(value, int | float | str | list | tuple | Mapping):
        return True
    annotation = argument.annotation
    if annotation is argument.empty:
        is_flag = isinstance(value, str) and bool(nearest(value.lower(), _FLAGS, 0.7))
        return not (is_flag and isinstance(argument.default, bool))
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    words = [word.rpartition(".")[2] for word in re.findall(r"[^\s\[\],|]+", text)]
    types = [kind for word in words for kind in _TYPES.get(word, (object,))]
    return not types or isinstance(value, tuple(types))
