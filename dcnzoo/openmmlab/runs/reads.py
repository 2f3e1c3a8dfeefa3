"""Run a model once before a training, to find settings that nobody reads, or with which it fails.

A second model computes one loss and one prediction, of the training's own pictures if they are there, and is
thrown away. It first gets two pictures, or generated ones in place of very large ones. Only if it fails with
them, it gets the whole first batch: an error is then the one that the training would end with.
"""

import copy
import functools
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import RPN
from mmdet.models.losses import FocalLoss, GIoULoss
from mmdet.models.roi_heads import BBoxHead
from mmdet.models.task_modules import AssignResult, MaxIoUAssigner, RandomSampler
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseModule, initialize
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dcnzoo.openmmlab.checkpoints import lacking_values, parts_of
from dcnzoo.openmmlab.classes import shapes
from dcnzoo.openmmlab.config.check import wrong_monitors
from dcnzoo.openmmlab.config.errors import UNKNOWN, config_errors, explain, require_none
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.config.read import is_published_key, published_models
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.config.watched import WITH_FILES, Asked, misspelt, unread, watched
from dcnzoo.openmmlab.runs.batches import Batch, FirstBatch, first_batch, images, other_sizes, pixels
from dcnzoo.openmmlab.runs.separate_run import trial
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import require_file
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, cut, few

_LARGEST = 500e6  # bytes of parameters
_LARGEST_BATCH = 16e6  # pixels
_LARGEST_ANCHOR = 4096  # pixels
_SIZES = (96, 320)  # pixels of generated pictures; some families need more than the smallest one
_LEAST_SPREAD = 0.03  # pixels that are normalised twice have a smaller one
_OF_PIXELS = 10  # larger numbers are those of pixels: coordinates, or values from 0 to 255
_UNSET = -123.5  # of a parameter that is not initialised
_LACKS = re.compile(
    r"(?:'(?:InstanceData|DetDataSample)' object has no attribute |img_meta\w*(?:\.get\(|\[))'(\w+)'"
)
_THRESHOLDS = ("score_thr", "conf_thr", "filter_thr")
_FEW = 16  # boxes that both stages of a small run propose, sample and predict


def require_read(runner: Runner) -> None:
    """Warn of settings that nobody reads; raise UserError for a name similar to one that is read.

    Raises:
        UserError: also for a pipeline or a model that fails with the first batch of the training.
    """
    cfg, findings = runner.cfg, list[Finding]()
    with trial(cfg) as changes:
        train, val = (first_batch(runner, name, findings) for name in ("train", "val"))
        late = first_batch(runner, "train", findings, is_late=True) if train else None
        if train and val:
            findings += other_sizes(train, val)
        # the model does not wait for other ranks
        changes.set(torch.distributed, "is_initialized", lambda: False)
        try:
            findings += unread_of_model(cfg, runner.model, train, val, late)
            findings += val.other_objects() if val else ()
        except UserError as error:
            if all(is_published(type(hook)) for hook in runner.hooks):
                raise
            # a hook of the user's own may prepare the model
            text = str(error).removeprefix(f"{cfg.filename}: ")
            findings.append(Finding("", f"without the hooks of the training: {text}", stops=False))
    require_none(dict.fromkeys(findings), cfg.filename)  # some are those of both training batches


def unread_of_model(
    cfg: Config,
    model: nn.Module,
    train: FirstBatch | None = None,
    val: FirstBatch | None = None,
    late: FirstBatch | None = None,
) -> list[Finding]:
    """Return the settings of a model that nobody reads; an error if one with a similar name is read.

    It is called in a :func:`trial`.

    Args:
        cfg: of the training.
        model: that has been built; a large one is not built again.
        train, val: the first batches of the training and of its validation; None: generated pictures.
        late: one of the training's last epoch, if its pipeline is another one.

    Raises:
        UserError: the model fails with such a batch.
    """
    if sum(each.numel() * each.element_size() for each in model.parameters()) > _LARGEST:
        return [_not_watched("model", "the model has more than 500 MB of parameters")]
    loop, hub = cfg.get("train_cfg") or {}, MessageHub.get_current_instance()
    numbers = {"epoch": 0, "iter": 0, **{key: loop.get(key) or 1 for key in ("max_epochs", "max_iters")}}
    for key, value in numbers.items():
        hub.update_info(key, value)  # as mmengine's RuntimeInfoHook does
    devices = [each.device for each in model.parameters() if not each.is_meta]
    with config_errors(cfg):
        second = _SecondModel(cfg, next(iter(devices), torch.device("cpu")))
        try:
            second.build(_FEW)
        except Exception as error:
            return [second.failure(error)]
        batches = [(train, True), (val, False)]
        if late:
            batches.append((late, True))
        failures = (second.run_first(*each) for each in batches)
        failure = next(filter(None, failures), None)
        findings = [*second.findings.values(), *_not_initialised(cfg, second.model)]
        findings += wrong_monitors(cfg.to_dict(), second.names) if second.names else []
        return [failure, *findings] if failure else [*findings, *unread(cfg, "model", second.asked)]


class _NotFinite(ValueError):
    pass


class _SecondModel:
    """A model of a config that notes which settings it reads, and what is wrong with the others.

    Attributes:
        asked: the settings that it has read.
        findings: by the part that they are about.
        names: of the numbers that a validation computes; None if some are not known.
    """

    model: Any
    names: set[str] | None = None

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self._cfg, self._device = cfg, device
        self.asked, self.findings = Asked(), dict[str, Finding]()
        self._heads = dict[str, tuple[nn.Module, tuple]]()  # those with anchors, and their last inputs
        self._width = 0  # of the pictures; 0: they are not in one tensor
        self._has_objects = False  # of the training's own data

    def build(self, most: int | None = None) -> None:
        """Build the model, or one that keeps at most ``most`` boxes, which is faster."""
        settings = self._cfg.model.to_dict()
        if self._cfg.get("data_preprocessor"):
            settings.setdefault("data_preprocessor", self._cfg.data_preprocessor.to_dict())
        for path, node in dicts(settings):
            node.update({key: None for key in WITH_FILES if key in node})
            node.update({key: 0.0 for key in _THRESHOLDS if isinstance(node.get(key), float)})
            key = "num" if path.endswith("sampler") else "max_per_img"
            is_of_stages = "rpn" in path or "rcnn" in path  # DETR has at least as many queries
            if most is not None and is_of_stages and type(node.get(key)) is int:
                node[key] = min(node[key], most)
        self.model = MODELS.build(watched(settings, "model", self.asked)).to(self._device)
        for name, module in self.model.named_modules():
            module.register_forward_pre_hook(functools.partial(self._watch, f"model.{name}"))
            assigner = getattr(module, "assigner", None)
            dropped = getattr(module, "p", getattr(module, "drop_prob", 0))
            if isinstance(module, _DropoutNd | DropPath) and dropped >= 1:
                self._warn(f"model.{name}", f"expected a dropout below 1, got {dropped}: nothing is left")
            loss, sampler = (getattr(module, key, None) for key in ("loss_cls", "sampler"))
            if isinstance(loss, FocalLoss) and isinstance(sampler, RandomSampler):
                text = "expected PseudoSampler: a focal loss is one of all places, got RandomSampler"
                self._warn(f"model.{name}", text)
            if text := _other_costs(module):
                self._warn(f"model.{name}.loss_cls", text)
            anchors = getattr(getattr(module, "prior_generator", None), "base_anchors", None)
            sides = [float((each[..., 2:4] - each[..., :2]).max()) for each in anchors or ()]
            steps = [max(each) for each in module.prior_generator.strides] if sides else []
            pairs = sorted(zip(steps, sides, strict=False))
            if any(side > later for (_, side), (_, later) in pairwise(pairs)):
                text = f"expected larger anchors for larger strides, got {pairs}"
                self._warn(f"model.{name}.anchor_generator", text)
            if sides and (max(sides) < 1 or max(sides) > _LARGEST_ANCHOR):
                text = f"expected anchors in pixels, got ones of {min(sides):.3g} to {max(sides):.3g}"
                self._warn(f"model.{name}.anchor_generator.scales", text)
            if hasattr(module, "prior_generator") and isinstance(assigner, MaxIoUAssigner):
                path = f"model.{name}.anchor_generator"
                assigner.assign = functools.partial(self._assign, path, assigner, [])

    def run_first(self, first: FirstBatch | None, training: bool) -> Finding | None:
        """Compute a loss, or predictions for the metrics; return why the model could not.

        Raises:
            UserError: the model fails with the whole batch.
        """
        first = None if first and pixels(first.few) > _LARGEST_BATCH else first
        error = self._run_small(first, training)
        if error is not None:  # some parameters have any values before they are initialised
            with suppress(Exception):
                self.model.init_weights()
            error = self._run_small(first, training)
        if error is None:
            return None
        batch = first.whole() if first else None
        if batch is None or pixels(batch) > _LARGEST_BATCH:
            return self.failure(error)
        self.build()
        self.model.init_weights()
        try:
            self._run(batch, training, first)
        except UserError:
            raise
        except (MemoryError, torch.OutOfMemoryError) as lack:
            return self.failure(lack)
        except _NotFinite as same:
            self._warn("model", str(same))
        except Exception as same:
            loader = "train_dataloader" if training else "val_dataloader"
            key, text = misspelt(self._cfg, "model", self.asked, same) or self._explain(same, loader, batch)
            raise UserError(
                f"{self._cfg.filename}: {key or 'model'}: {text} (with the first batch of {loader})"
            ) from same
        return None

    def _explain(self, error: Exception, loader: str, batch: Batch) -> tuple[str, str]:
        """Return the key that an error of the model is about, or that of the loader, and its message."""
        given = [getattr(each, "gt_instances", InstanceData()) for each in batch["data_samples"]]
        known = {name for each in given for name in each.all_keys()}
        key, text = explain(self._cfg, error, "model")
        if (match := _LACKS.search(text)) and match[1] not in known:
            return f"{loader}.dataset.pipeline", f"expected {match[1]}, which {key} reads, got none"
        part = self._heads.get(key) if self._width and isinstance(error, AssertionError) else None
        if part and (problem := _other_strides(*part, self._width, has_failed=True)):
            return f"{key}.{problem[0]}", problem[1]
        return key, text

    def _run_small(self, first: FirstBatch | None, training: bool) -> Exception | None:
        """Run with two pictures, or with generated ones; return the error of the largest of these."""
        errors = list[Exception]()
        demos = itertools.product((True, False), _SIZES)  # RTMDet for boxes fails with masks
        batches = [functools.partial(_demo, training, *each) for each in demos]
        for batch in [lambda: first.few] if first else batches:
            try:
                with torch.no_grad():
                    self._run(batch(), training, first)
                return None
            except Exception as failed:  # of a family that needs other data
                errors.append(failed)
        return errors[: len(_SIZES)][-1]

    def _run(self, batch: Batch, training: bool, first: FirstBatch | None) -> None:
        model = self.model
        model.train(training)  # returns None in detectors with a teacher
        intervals = [vars(module).get("_interval") for module in model.modules()]
        # choose an iteration in which all parts act, also those that act every few iterations only
        due = math.lcm(*(each for each in intervals if type(each) is int and each > 0)) - 1
        MessageHub.get_current_instance().update_info("iter", due)
        self._has_objects = first is not None
        for _ in range(1 + (due > 0)):  # a step may choose the size of the next pictures
            data = model.data_preprocessor(copy.deepcopy(batch), training)
        inputs = data["inputs"]
        self._width = inputs.shape[-1] if isinstance(inputs, Tensor) else 0
        spread = _spread(inputs, data["data_samples"] or ()) if self._width else 1
        for key, most in _other_units(model.data_preprocessor, batch):
            text = f"expected one of pixels from 0 to {most:g}, got one of pixels from 0 to 1"
            self._warn(f"model.data_preprocessor.{key}", text)
        if not spread > _LEAST_SPREAD:
            text = f"expected normalised pixels, got ones with a standard deviation of {spread:.3g}"
            self._warn("model.data_preprocessor.std", text)
        is_single = training and first and len(data["data_samples"] or ()) == 1
        for name, module in model.named_modules() if is_single else ():
            is_synchronised = isinstance(module, nn.SyncBatchNorm)
            if isinstance(module, _BatchNorm) and module.training and not is_synchronised:
                text = f"expected at least 2, as model.{name} normalises by the statistics of a batch, got 1"
                self._warn("train_dataloader.batch_size", text)
                break
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            result = model(**data, mode="loss" if training else "predict")
        if training:
            model.parse_losses(result)
            for name, value in result.items():
                values = value if isinstance(value, list) else [value]
                if "loss" in name and not all(each.isfinite().all() for each in values):
                    raise _NotFinite(f"expected a finite {name} in the first iteration, got inf or nan")
                if "loss" in name and any(each.numel() > 1 for each in values):
                    text = f"expected one number as {name}, got several: reduction='mean' averages them"
                    self._warn("model", text)
            self._check_losses(result, batch["data_samples"] if first else ())
        elif first:
            predicted = [each.pred_instances for each in result if "pred_instances" in each]
            boxes = [each.get("bboxes") for each in predicted]
            areas = [each[:, 2:].any() for each in boxes if isinstance(each, Tensor) and len(each)]
            # boxes of anchors have their sizes before the training; others are tiny
            if hasattr(model, "rpn_head") and predicted and not any(map(len, predicted)):
                text = "expected detections of any score before the training, got none in the first picture"
                self._warn("model.test_cfg", text)
            results, is_complete = first.evaluate(result, batch)
            self.names = set(results) if is_complete else None
            if isinstance(model, RPN) and any("bbox" in name for name in results):
                self._warn(
                    "val_evaluator.metric", "expected proposal_fast: an RPN predicts no classes, got bbox"
                )
            if areas and not any(areas) and any("bbox" in name for name in self.names or ()):
                self._warn("val_evaluator.metric", "expected one of masks, got bbox: the boxes are empty")
            if self.names is not None and not self.names:
                text = "expected a metric, got none: format_only or a metric that only writes files"
                self._warn("val_evaluator", text)

    def _check_losses(self, losses: Mapping, samples: Any) -> None:
        """Add a finding for logged losses that the model does not have, and for boxes without a loss.

        Args:
            samples: of the training's own data; empty: the losses are those of generated pictures.
        """
        logged = (self._cfg.get("log_processor") or {}).get("custom_cfg") or ()
        for index, name in enumerate(str(each.get("data_src")) for each in logged):
            if name.startswith("loss_") and name not in losses:
                text = f"expected a loss of the model, {few([*losses], 8)}, got {name}"
                self._warn(f"log_processor.custom_cfg.{index}.data_src", text)
        if not any(len(getattr(each, "gt_instances", ())) for each in samples):
            return
        parts = {"bbox_head": "loss_bbox"}
        if hasattr(self.model, "rpn_head"):
            parts = {"rpn_head": "loss_rpn_bbox"}
        # the later stages of a detector may find no object at first, unless they get those of the data
        head = getattr(self.model, "roi_head", None)
        if getattr(getattr(head, "bbox_sampler", None), "add_gt_as_proposals", False):
            parts["roi_head.bbox_head"] = "loss_bbox"
        modules = dict(self.model.named_modules())
        for part, name in parts.items():
            loss, values = getattr(modules.get(part), "loss_bbox", None), losses.get(name)
            values = values if isinstance(values, list) else [values]
            counts = getattr(loss, "loss_weight", 0.0)
            counts = counts and f"model.{part}.anchor_generator" not in self.findings
            if counts and all(isinstance(each, Tensor) and not each.any() for each in values):
                text = "expected a loss for the boxes of two pictures, got 0: none is assigned to a place"
                self._warn(f"model.{part}", text)

    def _warn(self, key: str, text: str) -> None:
        self.findings[key] = Finding(key, text, stops=False)

    def _watch(self, path: str, module: nn.Module, args: tuple) -> None:
        """Add a finding for a part whose inputs do not fit its settings: called before its forward."""
        if hasattr(module, "prior_generator"):
            self._heads[path] = (module, args)
        if self._width and (problem := _other_strides(module, args, self._width)):
            self._warn(f"{path}.{problem[0]}", problem[1])
        size = getattr(getattr(module, "prior_generator", None), "input_size", self._width)
        if self._has_objects and self._width and size != self._width:
            text = f"expected {self._width}, the width of the pictures, got {size}"
            self._warn(f"{path}.anchor_generator.input_size", text)
        outer = path.rpartition(".")[0]
        head = self.model.get_submodule(outer.removeprefix("model").removeprefix("."))
        if self._width and (text := _other_boxes(head, module, args)):
            self._warn(f"{outer}.reg_decoded_bbox", text)
        if path.endswith(".loss_cls") and (problem := _other_scores(head, module, args)):
            self._warn(f"{path}.{problem[0]}", problem[1])

    def _assign(
        self, path: str, assigner: Any, overlaps: list[float], *args: Any, **kwargs: Any
    ) -> AssignResult:
        """Assign objects to anchors; add a finding if these overlap none of the pictures so far."""
        result = type(assigner).assign(assigner, *args, **kwargs)
        if self._has_objects and result.num_gts and len(result.max_overlaps):
            overlaps.append(float(result.max_overlaps.max()))
            threshold = assigner.neg_iou_thr
            self.findings.pop(path, None)
            if max(overlaps) < (max(threshold) if isinstance(threshold, tuple) else threshold):
                got = f"ones that overlap them by at most {max(overlaps):.2f}"
                self._warn(path, f"expected anchors of the objects' sizes, got {got}")
        return result

    def failure(self, error: Exception) -> Finding:
        """Return why a run has ended; an error if code, or a function such as nms, lacks a setting."""
        if mistake := misspelt(self._cfg, "model", self.asked, error):
            return Finding(*mistake, "key")
        key, text = explain(self._cfg, error, "model")
        match = UNKNOWN.search(one_line(error))
        for path, node in dicts(self._cfg.model.to_dict(), "model"):
            if match and match[2] in node and not is_published_key(path.rpartition(".")[2], match[2]):
                return Finding(f"{path}.{match[2]}", text, "key")
        return _not_watched(key or "model", f"a run with two pictures fails: {text}")


def _not_watched(key: str, reason: str) -> Finding:
    text = f"{cut(reason, 200)}; settings that nobody reads are not searched for"
    return Finding(key, text, stops=False)


def _other_strides(
    module: nn.Module, args: tuple, width: int, has_failed: bool = False
) -> tuple[str, str] | None:
    """Return the setting of a part's strides and what is wrong with it; None if they are those of its maps.

    Args:
        width: of the pictures.
        has_failed: the part needs as many maps as strides.
    """
    maps = args[0] if args and isinstance(args[0], list | tuple) else ()
    if not (maps and all(isinstance(each, Tensor) and each.dim() == 4 for each in maps)):
        return None
    generator = getattr(module, "prior_generator", None)
    inner = "anchor_generator.strides" if hasattr(generator, "base_anchors") else "strides"
    owners = [(module, "featmap_strides", "featmap_strides"), (generator, "strides", inner)]
    owners.append((module, "strides", "strides"))
    owner, key, strides = next(
        ((each, key, own) for each, name, key in owners if (own := getattr(each, name, None))), (None, "", ())
    )
    if hasattr(module, "resize_feats") or not isinstance(
        strides, list | tuple
    ):  # SOLO resizes its maps first
        return None
    own = [stride if isinstance(stride, int) else stride[0] for stride in strides]
    sizes = [each.shape[-1] for each in maps]
    pairs = [(size, width / stride) for size, stride in zip(sizes, own, strict=False)]
    differ = any(abs(a - b) > 1 and max(a, b) > 1.5 * min(a, b) for a, b in pairs)
    if len(own) != len(sizes):  # a RoI extractor uses as many maps as it has strides; others may use some
        is_head = owner is not None and owner is generator and isinstance(module, BaseDenseHead)
        are_unused = is_head and len(own) < len(sizes)
        differ = key == "featmap_strides" or has_failed or are_unused
    widths, got = ", ".join(map(str, sizes)), ", ".join(map(str, own))
    text = f"expected the strides of maps that are {widths} wide for {width} pixels, got {got}"
    return (key, text) if differ else None


def _spread(inputs: Tensor, samples: Sequence[Any]) -> float:
    """Return the mean of the channels' standard deviations, without the pixels that pad a batch."""
    shapes = [getattr(each, "img_shape", inputs.shape[-2:]) for each in samples]
    own = [image[..., :height, :width] for image, (height, width, *_) in zip(inputs, shapes, strict=False)]
    return float(torch.stack([each.std((-2, -1)).mean() for each in own or [inputs]]).mean())


def _other_units(preprocessor: Any, batch: Batch) -> Iterator[tuple[str, float]]:
    """Yield ``mean`` or ``std`` if it is that of pixels from 0 to 1, with the largest pixel of a batch."""
    most = max(float(image.max()) for image in images(batch["inputs"]))
    for key in ("mean", "std"):
        values = getattr(preprocessor, key, None)
        if most > _OF_PIXELS and isinstance(values, Tensor) and ((values > 0) & (values < 1)).any():
            yield key, most


def _other_boxes(head: Any, loss: nn.Module, args: tuple) -> str:
    """Say so if a loss of overlaps gets encoded boxes, whose corners have no order; another loss, pixels."""
    boxes, weight = (args[place] if len(args) > place else None for place in (1, 2))
    if not isinstance(boxes, Tensor) or boxes.shape[-1:] != (4,):
        return ""
    if isinstance(weight, Tensor) and len(weight) == len(boxes):  # the others are of no object
        boxes = boxes[weight.reshape(len(weight), -1).any(-1)]
    if len(boxes) == 0:
        return ""
    by_overlap, name = type(loss).__module__ == GIoULoss.__module__, type(loss).__name__
    are_boxes = bool((boxes[..., 2:] > boxes[..., :2]).all())  # encoded ones of objects themselves are 0
    if by_overlap and not are_boxes:
        return f"expected True with {name}, which compares boxes, got encoded ones"
    is_decoded = getattr(head, "reg_decoded_bbox", False) and are_boxes and boxes.max() > _OF_PIXELS
    return f"expected False with {name}, got boxes in pixels" if is_decoded and not by_overlap else ""


def _other_scores(head: Any, loss: nn.Module, args: tuple) -> tuple[str, str] | None:
    """Return the setting of a loss that does not fit its scores: of the background, or after a sigmoid."""
    scores: Any = args[0] if args else None
    number = getattr(head, "num_classes", None)
    has_scores = (
        isinstance(head, BaseDenseHead | BBoxHead) and isinstance(scores, Tensor) and scores.dim() > 1
    )
    if has_scores and isinstance(number, int):
        got, by_sigmoid = scores.shape[-1], getattr(loss, "use_sigmoid", None)
        if isinstance(by_sigmoid, bool) and got == number + by_sigmoid:
            text = f"expected {not by_sigmoid} with {got} scores for {counted(number, 'classes')}"
            return "use_sigmoid", text
        are_shares = bool(((scores >= 0) & (scores <= 1)).all())
        if getattr(loss, "activated", are_shares) is not are_shares:
            text = f"expected {are_shares}, got scores from {scores.min():.3g} to {scores.max():.3g}"
            return "activated", text
    return None


def _other_costs(head: nn.Module) -> str:
    """Say so if a loss is by sigmoid and the cost of matching by softmax, or the other way round.

    A softmax does not change if all scores of a query grow by one number.
    """
    by_sigmoid = getattr(getattr(head, "loss_cls", None), "use_sigmoid", None)
    scores, truth = torch.arange(6.0).reshape(2, 3), InstanceData(labels=torch.tensor([1]))
    for cost in getattr(getattr(head, "assigner", None), "match_costs", ()):
        with suppress(Exception):  # one of boxes or masks
            before, after = (cost(InstanceData(scores=each), truth, {}) for each in (scores, scores + 1))
            if by_sigmoid is before.allclose(after):
                wanted, got = ("softmax", "sigmoid") if by_sigmoid else ("sigmoid", "softmax")
                return f"expected {wanted}, as the assigner's {type(cost).__name__}, got {got}"
    return ""


def _demo(training: bool, masks: bool, size: int) -> Batch:
    from mmdet.testing import demo_mm_inputs

    shapes = [[3, size, size]] * (1 + training)
    data = demo_mm_inputs(len(shapes), shapes, num_classes=2, with_mask=masks, with_semantic=True)
    for sample in data["data_samples"]:
        sample.gt_instances.labels.zero_()  # the only one that each head has
    return data


def _unlike_published(file: str, backbone: nn.Module) -> str:
    """Say so if a backbone differs from those of the published configs that have its file of weights.

    It may lack layers, and may have more layers inside its blocks, such as attention. It is unlike one if a
    child or block has nothing in common with it, or if a third of the values have other shapes.
    """
    own = {name: value.shape for name, value in backbone.state_dict().items()}
    seen, text = list[Mapping](), ""
    for model in published_models(file):
        settings = {key: value for key, value in model["backbone"].items() if key != "init_cfg"}
        if settings in seen:
            continue
        seen.append(settings)
        theirs = shapes(settings)
        alike = {name for name in own.keys() & theirs.keys() if own[name] == theirs[name]}
        modules = {name.rpartition(".")[0] for name in theirs}
        others = {name for name in own.keys() - alike if name.rpartition(".")[0] in modules}
        parts = {part for name in own.keys() - alike for part in parts_of(name)}
        parts -= {part for name in alike for part in parts_of(name)}
        containers = {"", *(part.rpartition(".")[0] for name in theirs for part in parts_of(name))}
        parts = {part for part in parts if part.rpartition(".")[0] in containers}
        if not theirs or (3 * len(others) <= len(own) and not parts):
            return ""
        names = few(sorted(parts or others))
        text = (
            text or f"expected the backbone of a published config with {file}, got one with others: {names}"
        )
    return text


def _not_initialised(cfg: Config, model: nn.Module) -> Iterator[Finding]:
    """Initialise the modules that have settings for it; yield a finding for each that gets no value.

    It is an error if this fails, unless the class has a method of its own, which may read other settings.
    Files must exist; of those that are here, the values are compared with the parameters.
    """
    modules = dict(model.named_modules(prefix="model"))
    for path, node in dicts(cfg.model.to_dict(), "model"):
        module, init = modules.get(path), node.get("init_cfg")
        is_own = type(module).__name__ == str(node.get("type")).rpartition(".")[2]
        file = init.get("checkpoint") if isinstance(init, dict) else None
        if init and isinstance(file, str):
            key, name = f"{path}.init_cfg.checkpoint", init.get("type")
            if isinstance(name, str) and WEIGHT_INITIALIZERS.get(name) is None:
                yield Finding(f"{path}.init_cfg.type", f"expected Pretrained, got {name}")
            require_file(file, f"{cfg.filename}: {key}")
            if module and path == "model.backbone" and is_own and (text := _unlike_published(file, module)):
                yield Finding(key, text, stops=False)
            if isinstance(module, BaseModule) and is_own and os.path.isfile(os.path.expanduser(file)):
                try:
                    text = lacking_values(module, ConfigDict(init))
                except Exception as error:
                    if type(module).init_weights is BaseModule.init_weights:
                        raise
                    text = one_line(error)  # a method of its own may need more
                if text:
                    yield Finding(key, text, stops=False)
        if module is None or not (init and is_own) or "checkpoint" in str(init):
            continue
        values = [*module.parameters()]
        for value in values:
            value.data.fill_(_UNSET)
        try:
            initialize(module, init)
        except Exception as error:
            stops = getattr(type(module), "init_weights", None) is BaseModule.init_weights
            yield Finding(f"{path}.init_cfg", one_line(error), stops=stops)
            continue
        if all((value == _UNSET).all() for value in values):
            text = "expected settings of layers that this part has, got ones that change no parameter"
            yield Finding(f"{path}.init_cfg", text, stops=False)
