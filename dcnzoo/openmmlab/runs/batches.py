"""The first batch of a training, by its own data sets and pipelines, for a model that is thrown away."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomCrop
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner, ValLoop, set_random_seed
from mmengine.runner.base_loop import BaseLoop
from mmengine.structures import InstanceData
from torch import Tensor

from dcnzoo.openmmlab.config.errors import causes, frames_of
from dcnzoo.openmmlab.config.packages import is_published
from dcnzoo.utils.errors import UserError, message, one_line, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, cut

Batch = dict[str, Any]  # inputs and data_samples, collated
_TINY = 32  # the stride of most backbones
_FAR = 2  # times as large
_WINDOW = 320  # pixels, as many as any family needs; a multiple of _TINY
_FEW = 8  # pictures
_AGREE = 0.7  # AP; metrics also count objects that a data set leaves out
_INNER = ("dataset", "datasets")  # attributes of wrappers


@dataclass(frozen=True)
class FirstBatch:
    """The first samples of a loop.

    Attributes:
        few: two samples; or, of large pictures, windows, and one in a validation.
        whole: returns the whole batch.
        evaluate: gives predictions to copies of the metrics of a validation; returns their results, and
            whether these are all.
        other_objects: yields a finding if the metrics find wrong what the data set has as annotations.
        sizes: of its pictures that are resized as a whole: the length of a side, and its ratio to the file's.
        keeps: whether its steps keep the ratio of width and height.
    """

    few: Batch
    whole: Callable[[], Batch]
    evaluate: Callable[[Sequence[Any], Batch], tuple[dict[str, Any], bool]]
    other_objects: Callable[[], Iterator[Finding]]
    sizes: Sequence[tuple[float, float]]
    keeps: set[bool]


def first_batch(
    runner: Runner, name: str, findings: list[Finding], is_late: bool = False
) -> FirstBatch | None:
    """Return the pictures that the sampler of a loop chooses first; None if there are none.

    Sampler, data sets and pipelines are copies, which share the annotations, so that the loop's stay as they
    are.

    Args:
        name: ``"train"`` or ``"val"``.
        findings: gets those about the pictures, or why the loop's parts cannot be copied.
        is_late: with the pipeline of the last epoch; None if MMDetection's hooks do not change it.

    Raises:
        UserError: the pipeline or the collation fails; names the step.
    """
    loop, part = getattr(runner, f"_{name}_loop"), f"{name}_dataloader"
    if not isinstance(loop, BaseLoop):
        return None
    unused = {"persistent_workers", "prefetch_factor", "num_batch_per_epoch", "pin_memory"}
    settings = {key: value for key, value in getattr(runner, f"_{part}").items() if key not in unused}
    try:
        dataset = loop.dataloader.dataset
        data = _copy(vars(dataset).get("_dataset", dataset))  # of num_batch_per_epoch
        if is_late and not _ends(runner, data):
            return None
        for _, step in _steps(data, "") if name == "train" else ():
            if isinstance(step, LoadAnnotations) and type(step).transform is LoadAnnotations.transform:
                step.transform = functools.partial(_load_first, step)
        settings.update(dataset=data, num_workers=0)
        loader = runner.build_dataloader(ConfigDict(settings), seed=runner.seed)
        most = len(data) if name == "val" else 1
        batches = [list[int](each) for each in islice(loader.batch_sampler or (), most)]
    except Exception as error:
        findings.append(Finding(part, f"its first batch was not tried: {one_line(error)}", stops=False))
        return None
    reader = getattr(data, "get_data_info", None)
    if name == "val":
        is_whole = runner.world_size > 1 or sum(map(len, batches)) >= len(data)
        findings += _not_evaluated(loop, data, len(data) if is_whole else sum(map(len, batches)))
    if not (batches and batches[0]):
        return None

    def collate(number: int | None = None, seed: int = 0) -> Any:
        try:
            set_random_seed(seed)
            return loader.collate_fn([data[index] for index in batches[0][:number]])
        except Exception as error:
            steps = {id(step): path for path, step in _steps(data, f"{part}.dataset")}
            frames = [*frames_of(error), *frames_of(error.__cause__)]
            selves = [id(frame.f_locals.get("self")) for frame in reversed(frames)]
            key = next((steps[each] for each in selves if each in steps), f"{part}.dataset")
            text = str(error) if isinstance(error, UserError) else message(error) + causes(runner.cfg, key)
            text += " (in the last epoch)" if is_late else ""
            raise UserError(printable(f"{runner.cfg.filename}: {key}: {text}")) from error

    few, pipeline = collate(2), f"{part}.dataset.pipeline"
    keys = few.keys() if isinstance(few, dict) else {type(few).__name__}
    if not {"inputs", "data_samples"} <= keys:
        text = f"expected inputs and data_samples, as of PackDetInputs, got {cut(', '.join(map(str, keys)))}"
        findings.append(Finding(pipeline, text, stops=False))
        return None
    findings += islice(_other_shapes(reader, batches[0], few, f"{part}.dataset") if reader else (), 1)
    draws = [few, *(collate(2, seed) for seed in range(1, 5))]  # a step may act in some of them only
    has_objects = reader is None or any(reader(each).get("instances") for each in batches[0][:2])
    findings += _unusual_pictures(draws, pipeline, name == "train", has_objects)
    evaluate = functools.partial(_evaluate, loop, runner.cfg, f"{name}_evaluator")
    other_objects = functools.partial(_other_objects, evaluate, data, loader.collate_fn)
    sizes = [size for each in draws for size in _sizes(each)]
    parts = (getattr(each, "prior_generator", None) for each in runner.model.modules())
    has_size = any(hasattr(each, "input_size") for each in parts)  # anchors for pictures of one size
    if not has_size and any(max(each.shape[-2:]) > _WINDOW for each in images(few["inputs"])):
        few = _windows(data, collate, 2 if name == "train" else 1) or few
    return FirstBatch(few, collate, evaluate, other_objects, sizes, _keeps(data))


def _not_evaluated(loop: Any, data: Any, predicted: int) -> Iterator[Finding]:
    """Yield pictures of a validation that are not predicted, and those of a metric that are not in the data.

    Args:
        predicted: number of pictures that the loader gives.
    """
    part, pictures = "val_dataloader", counted(len(data), "pictures")
    if predicted < len(data):
        yield Finding(part, f"expected all {pictures} in a validation, got {predicted}", stops=False)
    for metric in loop.evaluator.metrics:
        compared = len(metric._coco_api.get_img_ids()) if getattr(metric, "_coco_api", None) else 0
        if compared > len(data):
            text = f"expected the {pictures} of {part}, got a file of {compared}"
            yield Finding("val_evaluator", text, stops=False)
    reader: Any = getattr(data, "get_data_info", None)
    if reader and not any(reader(number).get("instances", True) for number in range(len(data))):
        yield Finding(part, "expected objects to evaluate, got none", stops=False)


def _ends(runner: Runner, data: Any) -> bool:
    """Change the data of a training as MMDetection's hooks do by its last epoch; return whether they do."""

    def state() -> tuple:
        return [id(step) for _, step in _steps(data, "")], str(vars(data).get("_skip_type_keys"))

    before, loader = state(), SimpleNamespace(dataset=data)
    model, epochs = SimpleNamespace(bbox_head=SimpleNamespace()), runner.max_epochs or 0
    fake = SimpleNamespace(train_dataloader=loader, logger=runner.logger, max_epochs=epochs, model=model)
    for hook in (each for each in runner.hooks if type(each).__module__.startswith("mmdet.")):
        own = copy.copy(hook)
        with suppress(Exception):  # of one that needs the model
            for fake.epoch in range(epochs):
                own.before_train_epoch(fake)
    return state() != before


def _unusual_pictures(
    draws: Sequence[Batch], pipeline: str, is_random: bool, has_objects: bool
) -> Iterator[Finding]:
    """Yield what no model can use: tiny pictures, only mirrored ones, and random ones in a validation.

    Args:
        has_objects: some of the annotations that a training draws; their pictures must show one.
    """
    first = [image for image in images(draws[0]["inputs"]) if image.dim() > 1]
    if tiny := [image.shape for image in first if max(image.shape[-2:]) < _TINY]:
        text = f"expected pictures of at least {_TINY} pixels, got {tiny[0][-2]} × {tiny[0][-1]}"
        yield Finding(pipeline, text, stops=False)
    samples = [sample for each in draws for sample in each["data_samples"]]
    if len(samples) >= _FEW and all(getattr(sample, "flip", False) for sample in samples):
        yield Finding(pipeline, "expected pictures that are not mirrored, got none", stops=False)
    objects = [each.gt_instances for each in samples if "gt_instances" in each]
    if is_random and has_objects and len(objects) >= _FEW and not any(map(len, objects)):
        yield Finding(pipeline, "expected objects in some pictures, got none", stops=False)
    other = (map(torch.equal, images(draws[0]["inputs"]), images(each["inputs"])) for each in draws)
    if not is_random and not all(map(all, other)):
        text = "expected the same picture each time, got random ones: predictions are not turned back"
        yield Finding(pipeline, text, stops=False)


def _other_shapes(reader: Callable, indices: Sequence[int], batch: Batch, path: str) -> Iterator[Finding]:
    """Yield the pictures that are larger or smaller than their annotations say."""
    for index, sample in zip(indices, batch["data_samples"], strict=False):
        info, shape = reader(index), getattr(sample, "ori_shape", None)
        expected, is_same = (info.get("height"), info.get("width")), "img_id" in info
        is_same = is_same and getattr(sample, "img_id", None) == info["img_id"]  # else a step has refused it
        if is_same and shape and all(expected) and tuple(shape[:2]) != expected:
            text = f"expected {expected[1]} × {expected[0]} pixels, as its annotations"
            text = f"{info.get('img_path')}: {text}, got {shape[1]} × {shape[0]}"
            yield Finding(path, text, stops=False)


def _keeps(data: Any) -> set[bool]:
    """Return whether the steps that resize pictures keep their shape."""
    steps = [getattr(step, "resize", step) for _, step in _steps(data, "")]
    resizing = (step for step in steps if getattr(step, "scale", None) and hasattr(step, "keep_ratio"))
    return {bool(step.keep_ratio) for step in resizing}


def _evaluate(
    loop: Any, cfg: Config, key: str, samples: Sequence[Any], batch: Batch, **settings: object
) -> tuple[dict[str, Any], bool]:
    """Evaluate predictions by copies of a loop's metrics.

    Metrics of the user's own are left out, and those that write or remove files.

    Args:
        settings: attributes of metrics that are replaced.

    Returns:
        The numbers, and whether they are all: False if a metric was left out, or the loop may add others.

    Raises:
        UserError: a metric fails.
    """
    evaluator = copy.copy(loop.evaluator)
    evaluator.metrics = []
    for each in loop.evaluator.metrics:
        if is_published(type(each)) and {"__del__", "out_file_path", "output_dir"}.isdisjoint(dir(each)):
            evaluator.metrics.append(copy.copy(each))
    for sample in samples:
        predicted = getattr(sample, "pred_instances", None)
        if predicted is not None and len(predicted) == 0:  # metrics do little without a detection
            one = {key: value.new_zeros(1, *value.shape[1:]) for key, value in predicted.items()}
            sample.pred_instances = InstanceData(**one)
    results = dict[str, Any]()
    try:
        for metric in evaluator.metrics:
            metric.results, metric.outfile_prefix = [], None  # None: a temporary folder
            vars(metric).update((key, value) for key, value in settings.items() if hasattr(metric, key))
        evaluator.process(samples, batch)
        for metric in evaluator.metrics:
            if hasattr(metric, "img_ids"):
                metric.img_ids = [sample.img_id for sample in samples]  # others have no predictions
            with redirect_stdout(StringIO()):
                start = f"{metric.prefix}/" if metric.prefix else ""
                values = metric.compute_metrics(metric.results) or {}
            results |= {f"{start}{name}": value for name, value in values.items()}
    except Exception as error:
        raise UserError(printable(f"{cfg.filename}: {key}: {message(error)}{causes(cfg, key)}")) from error
    is_complete = type(loop) is ValLoop and len(evaluator.metrics) == len(loop.evaluator.metrics)
    return results, is_complete


def _other_objects(evaluate: Callable, data: Any, collate: Callable) -> Iterator[Finding]:
    """Yield a finding if the metrics find wrong what a data set has as annotations."""
    reader: Callable[[int], dict] = getattr(data, "get_data_info", lambda number: {})
    with_objects = (number for number in range(len(data)) if reader(number).get("instances"))
    results = dict[str, Any]()
    if chosen := list(islice(with_objects, _FEW)):
        with suppress(Exception):  # of metrics and data that need more than boxes
            batch = collate([data[number] for number in chosen])
            for number, sample in zip(chosen, batch["data_samples"], strict=True):
                objects = [each for each in reader(number)["instances"] if not each.get("ignore_flag")]
                boxes = torch.tensor([each["bbox"] for each in objects]).reshape(-1, 4).float()
                moved = get_box_tensor(sample.gt_instances.get("bboxes", boxes))
                # loaded after the step that resizes, they have the file's size; else they are scaled back
                if moved.shape == boxes.shape and not moved.allclose(boxes, atol=0.1):
                    boxes = moved / moved.new_tensor(sample.get("scale_factor", (1.0, 1.0))).repeat(2)
                sample.pred_instances = InstanceData(
                    bboxes=boxes,
                    labels=torch.tensor([each["bbox_label"] for each in objects]).long(),
                    scores=torch.ones(len(objects)),
                )
            results, _ = evaluate(batch["data_samples"], batch, metrics=["bbox"])
    for name, value in results.items():
        if name.endswith(("/bbox_mAP", "pascal_voc/mAP")) and value < _AGREE:  # COCO: -1 without any
            text = f"expected {name} of about 1 for the annotations of val_dataloader as predictions"
            yield Finding("val_evaluator", f"{text}, got {value:.2f}", stops=False)


def _load_first(self: LoadAnnotations, results: dict) -> dict | None:
    """Load annotations; refuse a picture that has changed."""
    picture, shape = results.get("img"), results.get("ori_shape")
    if results.get("flip") or (picture is not None and shape and picture.shape[:2] != shape):
        raise ValueError("expected before the steps that change the picture, got after them")
    return LoadAnnotations.transform(self, results)


def _copy(data: Any) -> Any:
    memo = {}
    for _, each in _data_sets(data, ""):
        shared = (value for key, value in vars(each).items() if key not in ("pipeline", *_INNER))
        memo.update({id(value): value for value in shared if not isinstance(value, Tensor)})
    return copy.deepcopy(data, memo)


def _data_sets(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield a data set and those inside it, with their paths in the config."""
    yield path, data
    for name in _INNER:
        value = vars(data).get(name)
        if isinstance(value, list | tuple):
            for index, each in enumerate(value):
                yield from _data_sets(each, f"{path}.{name}.{index}")
        elif hasattr(value, "__dict__"):
            yield from _data_sets(value, f"{path}.{name}")


def _steps(data: Any, path: str) -> Iterator[tuple[str, object]]:
    """Yield the steps of all pipelines of a data set, with their paths in the config."""
    for where, each in _data_sets(data, path):
        pipeline = getattr(each, "pipeline", ())
        for index, step in enumerate(getattr(pipeline, "transforms", pipeline)):
            yield f"{where}.pipeline.{index}", step


class _Window(RandomCrop):
    """Crops a picture around its first object, which keeps its size in pixels.

    A side is a multiple of a stride if that of the picture is.
    """

    def __init__(self) -> None:
        super().__init__((_WINDOW, _WINDOW), allow_negative_crop=True)

    def transform(self, results: dict) -> dict | None:
        boxes = results.get("gt_bboxes")
        across, down = boxes.centers[0].tolist() if boxes is not None and len(boxes) else (0, 0)
        self._start = int(down) - _WINDOW // 2, int(across) - _WINDOW // 2
        return super().transform(results)

    def _get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        return tuple(min(side, _WINDOW - -side % _TINY) for side in image_size)

    def _rand_offset(self, margin: tuple[int, int]) -> tuple[int, ...]:
        return tuple(min(max(start, 0), most) for start, most in zip(self._start, margin, strict=True))


def _windows(data: Any, collate: Callable[[int], Batch], number: int) -> Batch | None:
    """Return samples with windows of their pictures, which take less time; None if a step fails."""
    for _, each in _data_sets(data, ""):
        pipeline = getattr(each, "pipeline", [])
        steps = getattr(pipeline, "transforms", pipeline)
        if steps and isinstance(steps[-1], PackDetInputs):
            break
    else:
        return None
    window, pack = _Window(), steps[-1]
    steps[-1] = lambda results: pack(window(results))  # some data sets count their steps
    try:
        return collate(number)
    except UserError:
        return None
    finally:
        steps[-1] = pack


def _sizes(batch: Batch) -> Iterator[tuple[float, float]]:
    samples = batch["data_samples"]
    for sample in samples if isinstance(samples, list) else ():
        shape, before = (getattr(sample, name, None) for name in ("img_shape", "ori_shape"))
        if shape and before:
            (height, width), (of_height, of_width) = shape[:2], before[:2]
            across, down = sample.get("scale_factor", (1.0, 1.0))
            if abs(of_width * across - width) <= 1 and abs(of_height * down - height) <= 1:
                yield math.sqrt(height * width), math.sqrt(across * down)


def other_sizes(train: FirstBatch, val: FirstBatch) -> Iterator[Finding]:
    """Yield a finding if a validation resizes pictures to other sizes or shapes than the training."""
    subject = "val_dataloader.dataset.pipeline"
    if len(train.keeps) == len(val.keeps) == 1 and train.keeps != val.keeps:
        text = f"expected keep_ratio={True in train.keeps}, as in training, got {True in val.keeps}"
        yield Finding(subject, text, stops=False)
    if train.sizes and val.sizes:
        (sides, scales), (own_sides, own_scales) = (np.transpose(each.sizes) for each in (train, val))
        are_larger = min(own_sides) > _FAR * max(sides) and min(own_scales) > _FAR * max(scales)
        are_smaller = max(own_sides) < min(sides) / _FAR and max(own_scales) < min(scales) / _FAR
        if are_larger or are_smaller:
            text = f"expected pictures of about {max(sides):.0f} pixels, as in training"
            yield Finding(subject, f"{text}, got {max(own_sides):.0f}", stops=False)


def pixels(batch: Batch) -> int:
    """Return the number of pixels of a batch."""
    return sum(image.shape[-1] * image.shape[-2] for image in images(batch["inputs"]))


def images(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Mapping):  # of several branches
        for value in inputs.values():
            yield from images(value)
    else:
        yield from (image for image in inputs if isinstance(image, Tensor))
