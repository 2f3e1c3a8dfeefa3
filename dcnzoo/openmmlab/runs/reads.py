"""Run a model once before a training, to find settings that nobody reads, or with which it fails.

A second model computes one loss and one prediction, of the training's own pictures if they are there, and is
thrown away. It first gets two pictures, or generated ones in place of very large ones. Only if it fails with
them, it gets the whole first batch: an error is then the one that the training would end with.
"""

import copy
import functools
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmdet.models.losses import GIoULoss
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModule, initialize
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config.errors import UNKNOWN, config_errors, explain, require_none
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.openmmlab.config.read import is_published_key
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.config.watched import WITH_FILES, Asked, misspelt, unread, watched
from dcnzoo.openmmlab.runs.batches import Batch, FirstBatch, first_batch, pixels
from dcnzoo.openmmlab.runs.rehearse import without_trace
from dcnzoo.openmmlab.runs.separate_run import separate_run
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import require_file
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import cut

_LARGEST = 500e6  # bytes of parameters
_LARGEST_BATCH = 16e6  # pixels
_SIZES = (96, 320)  # pixels of generated pictures; some families need more than the smallest one
_LEAST_SPREAD, _MOST_SPREAD = 0.03, 128  # of values normalised twice, and by the std of pixels from 0 to 1
_UNSET = -123.5  # of a parameter that is not initialised
_THRESHOLDS = ("score_thr", "conf_thr")


def require_read(cfg: Config, runner: Runner) -> None:
    """Warn of settings that nobody reads; raise UserError for a name similar to one that is read.

    Raises:
        UserError: also for a pipeline or a model that fails with the first batch of the training.
    """
    if not isinstance(runner, Runner):  # FlexibleRunner builds its parts in the strategy
        return
    batches = [first_batch(runner, name) for name in ("train", "val")]
    try:
        findings = unread_of_model(cfg, runner.model, *batches)
    except UserError as error:
        if all(is_published(type(hook)) for hook in runner.hooks):
            raise
        # a hook of the user's own may prepare the model
        text = str(error).removeprefix(f"{cfg.filename}: ")
        findings = [Finding("", f"without the hooks of the training: {text}", stops=False)]
    require_none(findings, cfg.filename)


def unread_of_model(
    cfg: Config, model: nn.Module, train: FirstBatch | None = None, val: FirstBatch | None = None
) -> list[Finding]:
    """Return the settings of a model that nobody reads; an error if one with a similar name is read.

    Random generators, scopes and logs stay as they were.

    Args:
        cfg: of the training.
        model: that has been built; a large one is not built again.
        train, val: the first batches of the training and of its validation; None: generated pictures.

    Raises:
        UserError: the model fails with such a batch.
    """
    if sum(each.numel() * each.element_size() for each in model.parameters()) > _LARGEST:
        return [_not_watched("model", "the model has more than 500 MB of parameters")]
    asked: Asked = {}
    devices = [each.device for each in model.parameters() if not each.is_meta]
    build = functools.partial(_build, cfg, asked, next(iter(devices), torch.device("cpu")))
    failures, strides = list[Finding](), dict[str, Finding]()
    with config_errors(cfg), _alone(cfg):
        try:
            second = build()
        except Exception as error:
            return [_failure(cfg, error, asked)]
        for first, training in ((train, True), (val, False)):
            first = None if first and pixels(first.few) > _LARGEST_BATCH else first
            failed = _run_small(second, first, training, strides)
            if failed is None:
                continue
            batch = first.whole() if first else None
            if batch is None or pixels(batch) > _LARGEST_BATCH:
                failures.append(_failure(cfg, failed, asked))
                break
            second = build()
            second.init_weights()  # some parameters have any values before
            try:
                _run(second, batch, training, {}, first)
            except UserError:
                raise
            except (MemoryError, torch.OutOfMemoryError) as lack:
                failures.append(_failure(cfg, lack, asked))
            except Exception as same:
                key, text = misspelt(cfg, "model", asked, same) or explain(cfg, same)
                loader = "train_dataloader" if training else "val_dataloader"
                raise UserError(
                    f"{cfg.filename}: {key or 'model'}: {text} (with the first batch of {loader})"
                ) from same
        findings = [*failures, *strides.values(), *_not_initialised(cfg, second)]
        return findings if failures else [*findings, *unread(cfg, "model", asked)]


@contextmanager
def _alone(cfg: Config) -> Iterator[None]:
    """Context of a model that shares nothing with the training, and does not wait for other ranks."""
    scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope"))
    with separate_run(), without_trace(), scope, Changes() as changes:
        changes.set(torch.distributed, "is_initialized", lambda: False)
        loop, hub = cfg.get("train_cfg") or {}, MessageHub.get_current_instance()
        numbers = {"epoch": 0, "iter": 0, **{key: loop.get(key) or 1 for key in ("max_epochs", "max_iters")}}
        for key, value in numbers.items():
            hub.update_info(key, value)  # as mmengine's RuntimeInfoHook does
        yield


def _run_small(
    model: nn.Module, first: FirstBatch | None, training: bool, strides: dict[str, Finding]
) -> Exception | None:
    """Run a model with two pictures, or with generated ones; return the error of the largest of these."""
    errors = list[Exception]()
    demos = itertools.product((True, False), _SIZES)  # RTMDet for boxes fails with masks
    batches = [lambda: first.few] if first else [functools.partial(_demo, training, *each) for each in demos]
    for batch in batches:
        try:
            with torch.no_grad():
                _run(model, batch(), training, strides, first)
            return None
        except Exception as failed:  # of a family that needs other data
            errors.append(failed)
    return errors[: len(_SIZES)][-1]


def _failure(cfg: Config, error: Exception, asked: Asked) -> Finding:
    """Return why the small run has ended; an error if code, or a function such as nms, lacks a setting."""
    if mistake := misspelt(cfg, "model", asked, error):
        return Finding(*mistake, "key")
    key, text = explain(cfg, error)
    match = UNKNOWN.search(one_line(error))
    for path, node in dicts(cfg.model.to_dict(), "model"):
        if match and match[2] in node and not is_published_key(path.rpartition(".")[2], match[2]):
            return Finding(f"{path}.{match[2]}", text, "key")
    return _not_watched(key or "model", f"a run with two pictures fails: {text}")


def _not_watched(key: str, reason: str) -> Finding:
    text = f"{cut(reason, 200)}; settings that nobody reads are not searched for"
    return Finding(key, text, stops=False)


def _build(cfg: Config, asked: Asked, device: torch.device) -> Any:
    settings = cfg.model.to_dict()
    if cfg.get("data_preprocessor"):
        settings.setdefault("data_preprocessor", cfg.data_preprocessor.to_dict())
    for _, node in dicts(settings):
        node.update({key: None for key in WITH_FILES if key in node})
        node.update({key: 0.0 for key in _THRESHOLDS if isinstance(node.get(key), float)})
    return MODELS.build(watched(settings, "model", asked)).to(device)


def _demo(training: bool, masks: bool, size: int) -> Batch:
    from mmdet.testing import demo_mm_inputs

    shapes = [[3, size, size]] * (1 + training)
    data = demo_mm_inputs(len(shapes), shapes, num_classes=2, with_mask=masks, with_semantic=True)
    for sample in data["data_samples"]:
        sample.gt_instances.labels.zero_()  # the only one that each head has
    return data


def _run(
    model: Any, batch: Batch, training: bool, findings: dict[str, Finding], first: FirstBatch | None
) -> None:
    """Compute a loss, or predictions for the metrics; add a finding for each part with other strides."""
    model.train(training)
    data = model.data_preprocessor(copy.deepcopy(batch), training)
    with ExitStack() as hooks, torch.set_grad_enabled(training and torch.is_grad_enabled()):
        if isinstance(data["inputs"], Tensor):
            if not _LEAST_SPREAD < (spread := float(data["inputs"].std((-2, -1)).mean())) < _MOST_SPREAD:
                text = f"expected normalised pixels, got ones with a standard deviation of {spread:.3g}"
                findings["std"] = Finding("model.data_preprocessor.std", text, stops=False)
            for name, module in model.named_modules():
                compare = functools.partial(
                    _compare_strides, f"model.{name}", data["inputs"].shape[-1], findings
                )
                if type(module).__module__ == GIoULoss.__module__:
                    compare = functools.partial(_compare_corners, f"model.{name}", findings)
                hooks.callback(module.register_forward_pre_hook(compare).remove)
        result = model(**data, mode="loss" if training else "predict")
    if training:
        model.parse_losses(result)
        for name, value in result.items():
            if "loss" in name and any(
                each.numel() > 1 for each in (value if isinstance(value, list) else [value])
            ):
                text = f"expected one number as {name}, got several: reduction='mean' averages them"
                findings[name] = Finding("model", text, stops=False)
    elif first and not first.evaluate(result, batch):
        text = "expected a metric, got none: format_only or a metric that only writes files"
        findings["metrics"] = Finding("val_evaluator", text, stops=False)


def _compare_strides(
    path: str, width: int, findings: dict[str, Finding], module: nn.Module, args: tuple
) -> None:
    generator = getattr(module, "prior_generator", None)
    owners = [(module, "featmap_strides"), (generator, "strides"), (module, "strides")]
    owners = [] if hasattr(module, "resize_feats") else owners  # SOLO resizes its maps before it uses them
    key, strides = next(((key, own) for each, key in owners if (own := getattr(each, key, None))), ("", ()))
    maps = args[0] if args and isinstance(args[0], list | tuple) and isinstance(strides, list | tuple) else ()
    if not (maps and all(isinstance(each, Tensor) and each.dim() == 4 for each in maps)):
        return
    own = [stride if isinstance(stride, int) else stride[0] for stride in strides]
    sizes = [each.shape[-1] for each in maps]
    pairs = [(size, width / stride) for size, stride in zip(sizes, own, strict=False)]
    differ = any(abs(a - b) > 1 and max(a, b) > 1.5 * min(a, b) for a, b in pairs)
    if len(own) != len(sizes):  # a RoI extractor uses as many maps as it has strides; others may use some
        differ = key == "featmap_strides"
    if differ:
        widths, got = ", ".join(map(str, sizes)), ", ".join(map(str, own))
        text = f"expected the strides of maps that are {widths} wide for {width} pixels, got {got}"
        findings[path] = Finding(f"{path}.{key}", text, stops=False)


def _not_initialised(cfg: Config, model: nn.Module) -> Iterator[Finding]:
    """Initialise the modules that have settings for it; yield a finding for each that gets no value.

    It is an error if this fails, unless the class has a method of its own, which may read other settings.
    Files are not read, but must exist.
    """
    modules = dict(model.named_modules(prefix="model"))
    for path, node in dicts(cfg.model.to_dict(), "model"):
        module, init = modules.get(path), node.get("init_cfg")
        is_own = type(module).__name__ == str(node.get("type")).rpartition(".")[2]
        file = init.get("checkpoint") if isinstance(init, dict) else None
        if isinstance(file, str):
            require_file(file, f"{cfg.filename}: {path}.init_cfg.checkpoint")
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


def _compare_corners(path: str, findings: dict[str, Finding], loss: nn.Module, args: tuple) -> None:
    """Add a finding for a loss of overlaps that gets encoded boxes, whose corners are in no order."""
    boxes = args[1] if len(args) > 1 else None
    if isinstance(boxes, Tensor) and boxes.shape[-1:] == (4,) and (boxes[..., 2:] < boxes[..., :2]).any():
        text = f"expected True with {type(loss).__name__}, which compares boxes, got encoded ones"
        findings[path] = Finding(f"{path.rpartition('.')[0]}.reg_decoded_bbox", text, stops=False)
