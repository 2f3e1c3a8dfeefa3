"""Find mistakes in a config that mmengine does not report, or reports only after an epoch."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from dcnzoo.data.files import InvalidAnnotation, read_json
from dcnzoo.detect.sources import ModelError
from dcnzoo.openmmlab.classes import ALL, STUFF, THINGS, data_sets, numbers
from dcnzoo.openmmlab.config.tree import annotation_file, class_of, dicts
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.findings import Finding

PARTS = ("train", "val", "test")


# arguments of LoadImageFromFile, and their values with which it returns the pixels of detect.pictures.read
# (Pillow's are others for 16 bits, and for grey with transparency)
READ = {"color_type": ("color",), "imdecode_backend": ("cv2", "pillow", "turbojpeg", None)}


def require_colour(step: Mapping) -> None:
    """Raise ModelError if a config's ``LoadImageFromFile`` reads other channels or values or ignores EXIF."""
    for name, values in READ.items():
        if (value := step.get(name, values[0])) not in values:
            expected = ", ".join(map(repr, values))
            raise ModelError(
                f"test_pipeline: LoadImageFromFile: {name}: expected {expected}, got {value!r}, with which "
                "only dcnzoo train and dcnzoo test read pictures"
            )


def check_config(
    cfg: Config, name: str | os.PathLike, required: Sequence[str] = (), parts: Sequence[str] = PARTS
) -> None:
    """Check a config without building it.

    Args:
        name: the config's file, for the messages.
        required: top-level keys that the command uses.
        parts: those of :data:`PARTS` that the command runs; their data must fit the model.

    Raises:
        UserError: the config has problems, one line for each.
    """
    if not cfg:
        raise UserError(f"{name}: expected a config, got an empty file")
    lines = []
    for problem in find_problems(cfg, required, parts):
        line = printable(f"{name}: {problem}")
        if problem.stops:
            lines.append(line)
        else:
            print_log(line, "current", logging.WARNING)
    if lines:
        raise UserError(*lines)


def find_problems(cfg: Config, required: Sequence[str] = (), parts: Sequence[str] = PARTS) -> list[Finding]:
    """List the problems of the parts that a command uses; see :func:`check_config`."""
    if lacking := [key for key in required if not cfg.get(key)]:
        return [Finding(key, f"expected its settings, got {cfg.get(key)}") for key in lacking]
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return [*wrong_classes(cfg, parts), *wrong_evaluator_files(cfg, parts)] if parts else []


def wrong_classes(cfg: Mapping, parts: Sequence[str]) -> Iterator[Finding]:
    """Yield heads whose number of classes differs from the data's; MMDetection accepts a larger number."""
    expected: dict[str, dict[int, str]] = {ALL: {}, THINGS: {}, STUFF: {}}  # number → loader
    declared = set[int]()  # numbers of classes that the config itself lists
    for loader, dataset, info in data_sets(cfg):
        names = info.get("classes")
        if isinstance(names, str):
            text = f"expected a tuple of names, got {names!r}; write ({names!r},)"
            yield Finding(f"{loader}: metainfo.classes", text)
        if not isinstance(names, list | tuple) or loader.removesuffix("_dataloader") not in parts:
            continue
        if dataset.get("type") == "MOTChallengeDataset":  # detectors find one of its 13 classes: pedestrians
            continue
        if "classes" in (dataset.get("metainfo") or {}):
            declared.add(len(names))
        things, stuff = info.get("thing_classes", names), info.get("stuff_classes", ())
        for key, counted in ((ALL, things), (THINGS, things), (STUFF, stuff)):
            expected[key].setdefault(len(counted), loader)
    for path, node, key, number in numbers(cfg.get("model") or {}):
        module = getattr(class_of(node), "__module__", "")
        if "head" in path and module.startswith("mmdet."):  # a user's own class may count others
            for count in expected[key].keys() - {number}:
                text = f"expected {count}, the number of classes in {expected[key][count]}, got {number}"
                # some published configs train with more classes than their data set's class lists
                stops = number < count or key != ALL or count in declared
                yield Finding(f"{path}.{key}", text, stops=stops)


def wrong_evaluator_files(cfg: Mapping, parts: Sequence[str]) -> Iterator[Finding]:
    """Yield evaluators whose annotation file has other pictures than that of their data loader.

    Annotations are not compared: a panoptic evaluation also has boxes from a file of their own.
    """
    for part in parts:
        own = [dataset for loader, dataset, _ in data_sets(cfg) if loader == f"{part}_dataloader"]
        if len(own) != 1:
            continue
        for _, metric in dicts(cfg.get(f"{part}_evaluator")):
            file, path = metric.get("ann_file"), annotation_file(own[0])
            if isinstance(file, str) and not _same_images(file, path):
                text = f"expected {path}, as in {part}_dataloader, got {file}"
                yield Finding(f"{part}_evaluator.ann_file", text)


def _same_images(file: str, other: str) -> bool:
    """Return whether COCO files have the same images; also True for a broken file, which loading reports."""
    if os.path.realpath(file) == os.path.realpath(other):
        return True
    try:
        contents = [read_json(Path(path)) for path in (file, other)]
        images = [{(image["id"], image["file_name"]) for image in content["images"]} for content in contents]
    except (InvalidAnnotation, LookupError, TypeError):
        return True
    return images[0] == images[1]
